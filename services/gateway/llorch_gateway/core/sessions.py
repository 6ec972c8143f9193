"""What is told of a session, in bodies and headers. Pure."""

from typing import TypeVar

import msgspec

from llorch_shared import session_account, session_budget, session_limits
from llorch_shared.http_api import COST_REMAINING_HEADER, TIME_REMAINING_HEADER, TOKENS_REMAINING_HEADER
from llorch_shared.wire.session import NANO, SessionInfo, SessionPolicy, SessionRecord, SessionRemaining, SessionSeen
from llorch_shared.wire.task import TaskAccepted

T = TypeVar("T")
Pairs = list[tuple[str, str]]


def told(record: SessionRecord, policy: SessionPolicy, *, now_ms: int, kv_bytes_per_token: int) -> SessionInfo:
    """Of a session with an account."""
    left = session_budget.remaining(record, policy)
    warm = record.kv_warmth
    return SessionInfo(
        session_id=record.session_id,
        ttl_ms_remaining=session_account.left_ms(record, policy, now_ms),
        turns=record.turns,
        kv_bytes=record.kv_tokens * kv_bytes_per_token if warm else 0,
        kv_warmth=warm,
        turns_max=session_limits.in_force(record.limits, policy).turns_max,
        tokens_budget_remaining=_or_unset(left.tokens_budget_remaining),
        time_budget_remaining_ms=_or_unset(left.time_budget_remaining_ms),
        cost_budget_remaining=_or_unset(left.cost_budget_remaining),
        tokens_spent=record.spent.tokens,
        time_spent_ms=record.spent.time_ms,
        cost_spent=record.spent.nano / NANO,
        tasks_open=len(record.open),
    )


def told_of_seen(session_id: str, seen: SessionSeen, *, warm: bool) -> SessionInfo:
    """Of one that has none: as a scheduler remembers it."""
    return SessionInfo(
        session_id=session_id, ttl_ms_remaining=seen.left_ms, turns=seen.turns, kv_bytes=0, kv_warmth=warm
    )


def with_budget(accepted: TaskAccepted, left: SessionRemaining | None) -> TaskAccepted:
    if left is None:
        return accepted
    return msgspec.structs.replace(
        accepted,
        tokens_budget_remaining=_or_unset(left.tokens_budget_remaining),
        time_budget_remaining_ms=_or_unset(left.time_budget_remaining_ms),
        cost_budget_remaining=_or_unset(left.cost_budget_remaining),
    )


def budget_headers(left: SessionRemaining | TaskAccepted | None) -> Pairs:
    """Only of budgets that there are."""
    if left is None:
        return []
    named = (
        (TOKENS_REMAINING_HEADER, left.tokens_budget_remaining),
        (TIME_REMAINING_HEADER, left.time_budget_remaining_ms),
        (COST_REMAINING_HEADER, left.cost_budget_remaining),
    )
    return [(name, _plain(value)) for name, value in named if value is not None and value is not msgspec.UNSET]


def _plain(value: float | msgspec.UnsetType) -> str:
    """A decimal number, never in powers of ten."""
    return f"{value:.9f}" if isinstance(value, float) else str(value)


def _or_unset(value: T | None) -> T | msgspec.UnsetType:
    return msgspec.UNSET if value is None else value
