"""What a session's budget leaves to one attempt, and what is left of it at the end. Pure."""

import msgspec

from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.session import NANO, SessionRemaining, SessionTerms
from llorch_shared.wire.task import TaskRequest


def within(request: TaskRequest, terms: SessionTerms | None, sent: int, decoded_ms: int) -> TaskRequest | None:
    """What the engine may be asked for when the stream has `sent` tokens already, which took earlier attempts
    `decoded_ms`; None when nothing more."""
    if terms is not None and time_left_ms(terms, decoded_ms) == 0:
        return None
    if terms is None or terms.tokens_max is None or request.max_tokens <= terms.tokens_max - sent:
        return request
    left = terms.tokens_max - sent
    return msgspec.structs.replace(request, max_tokens=left) if left > 0 else None


def time_left_ms(terms: SessionTerms, decoded_ms: int) -> int | None:
    """Of decode time, for one more attempt; None without a limit."""
    return None if terms.time_max_ms is None else max(0, terms.time_max_ms - decoded_ms)


def left_after(run: RunRecord) -> SessionRemaining | None:
    """What the session has left when the task of this final record is paid for, as far as this task knows; None
    without a budget."""
    terms = run.session
    if terms is None:
        return None
    before, unused = terms.remaining, (terms.tokens_max or 0) - run.tokens_out
    tokens, time_ms, cost = (
        before.tokens_budget_remaining,
        before.time_budget_remaining_ms,
        before.cost_budget_remaining,
    )
    granted_ms = terms.time_max_ms or 0
    told = SessionRemaining(
        tokens_budget_remaining=None if tokens is None else max(0, tokens + unused),
        time_budget_remaining_ms=None if time_ms is None else max(0, time_ms + granted_ms - run.decode_ms),
        cost_budget_remaining=None if cost is None else max(0.0, cost + unused * terms.nano_per_token / NANO),
    )
    return told if told != SessionRemaining() else None
