"""The account of a session: what may be reserved for a task, what is given back, what is spent. Pure.

    no record ─open─▶ open ─(no task for ttl_ms, or closed by its client)─▶ ended

    reserve    before a task is queued; refused when it does not fit, changes nothing when it was reserved before
    release    the task was not queued after all
    settle     the task has ended: what it used is spent, once, whatever is settled again

A session ends between its tasks, never while one is under way, and an id that has ended stays so: a new account under
an old id would be a budget that renews itself. Tokens and cost are reserved for all that a task may generate, so a
budget cannot be overdrawn by tasks side by side; time cannot be known before, so a task gets what is left of it, at
most its own deadline, and is stopped by its node when that is used up.
"""

from typing import Final, NamedTuple

import msgspec

from llorch_shared.errors import ErrorCode, OrchError, PolicyLabel
from llorch_shared.session_budget import budgets, remaining
from llorch_shared.session_limits import asked_for, in_force
from llorch_shared.wire.session import (
    NANO,
    SessionAmounts,
    SessionHold,
    SessionPolicy,
    SessionRecord,
    SessionRequest,
    SessionTerms,
)
from llorch_shared.wire.task import TaskRequest, Workload

RENEWED_AFTER_MS: Final = 5_000
"""A task that is handed in again after this is reserved for anew: nobody takes it for one that was never queued."""


class Wish(NamedTuple):
    """What a task is reserved for."""

    task_id: str
    pool_id: str
    tokens: int
    """That it may generate."""
    time_ms: int
    """At most of decode time: its deadline."""
    engine: str
    owner: str


def wish_of(request: TaskRequest, pool_id: str, owner: str) -> Wish:
    """A completion may generate `max_tokens`; other workloads have one result for each input."""
    one_each = request.workload is not Workload.COMPLETION
    tokens = max(request.max_tokens, len(request.inputs or ())) if one_each else request.max_tokens
    return Wish(request.task_id, pool_id, tokens, request.deadline_ms, request.engine, owner)


def opened(session_id: str, tenant: str, policy: SessionPolicy, wanted: SessionRequest, now_ms: int) -> SessionRecord:
    """A new account. Raises OrchError."""
    return SessionRecord(
        session_id=session_id,
        tenant=tenant,
        created_ms=now_ms,
        used_ms=now_ms,
        limits=asked_for(policy, wanted),
        nano_per_token=round(policy.cost_per_token * NANO),
    )


def rewritten(record: SessionRecord, policy: SessionPolicy, wanted: SessionRequest, now_ms: int) -> SessionRecord:
    """Held to something else from now on; what was spent stays. Raises OrchError."""
    if is_over(record, policy, now_ms):
        raise _over(record)
    return msgspec.structs.replace(record, limits=asked_for(policy, wanted), used_ms=max(now_ms, record.used_ms))


def closed(record: SessionRecord, now_ms: int) -> SessionRecord:
    """Tasks under way go on and are settled."""
    if record.closed_ms:
        return record
    return msgspec.structs.replace(record, closed_ms=now_ms, kv_warmth=False, kv_tokens=0, pool_id="", replica_id="")


def left_ms(record: SessionRecord, policy: SessionPolicy, now_ms: int) -> int:
    """Until it ends by itself. Not while a task is under way."""
    ttl_ms = in_force(record.limits, policy).ttl_ms
    return ttl_ms if record.open else max(0, min(ttl_ms, record.used_ms + ttl_ms - now_ms))


def is_over(record: SessionRecord, policy: SessionPolicy, now_ms: int) -> bool:
    return bool(record.closed_ms) or left_ms(record, policy, now_ms) <= 0


def reserve(record: SessionRecord, wish: Wish, policy: SessionPolicy, now_ms: int) -> SessionRecord:
    """Raises OrchError when the session takes no task like this, Refused when it may later."""
    if wish.task_id in record.settled:
        return record
    hold = record.open.get(wish.task_id)
    if hold is not None:
        if wish.owner in hold.owners and now_ms - hold.at_ms < RENEWED_AFTER_MS:
            return record
        owners = hold.owners if wish.owner in hold.owners else (*hold.owners, wish.owner)
        shared = msgspec.structs.replace(hold, owners=owners, pool_id=wish.pool_id, at_ms=max(now_ms, hold.at_ms))
        return msgspec.structs.replace(record, open={**record.open, wish.task_id: shared})
    if is_over(record, policy, now_ms):
        raise _over(record, wish.engine)
    turns_max = in_force(record.limits, policy).turns_max
    if record.turns >= turns_max:
        raise OrchError(
            ErrorCode.INVALID_PARAMS,
            f"session {record.session_id} has had its {turns_max} turns",
            engine=wish.engine,
            pool_id=wish.pool_id,
            policy_label=PolicyLabel.SESSION_TURNS,
            hint="go on in a new session",
        )
    left = budgets(record, policy)
    left.tokens.check(wish.tokens, engine=wish.engine, pool_id=wish.pool_id)
    left.nano.check(wish.tokens * record.nano_per_token, engine=wish.engine, pool_id=wish.pool_id)
    left.time_ms.check(1, engine=wish.engine, pool_id=wish.pool_id)
    time_ms = 0 if left.time_ms.left is None else min(max(1, wish.time_ms), left.time_ms.left)
    return _held(record, wish, time_ms, now_ms)


def charge(record: SessionRecord, wish: Wish, now_ms: int) -> SessionRecord:
    """Held for a task that was accepted before its session had an account: it is not refused any more, and the session
    pays for it whatever it has left."""
    if wish.task_id in record.settled or wish.task_id in record.open:
        return record
    return _held(record, wish, 0, now_ms)


def _held(record: SessionRecord, wish: Wish, time_ms: int, now_ms: int) -> SessionRecord:
    amounts = SessionAmounts(tokens=wish.tokens, time_ms=time_ms, nano=wish.tokens * record.nano_per_token)
    new = SessionHold(amounts=amounts, at_ms=now_ms, pool_id=wish.pool_id, owners=(wish.owner,))
    return msgspec.structs.replace(record, open={**record.open, wish.task_id: new}, used_ms=max(now_ms, record.used_ms))


def release(record: SessionRecord, task_id: str, owner: str | None) -> SessionRecord:
    """The task was not queued. `owner` None: it is certain that it is nowhere, whoever reserved it."""
    hold = record.open.get(task_id)
    if hold is None or (owner is not None and owner not in hold.owners):
        return record
    owners = tuple(each for each in hold.owners if each != owner) if owner is not None else ()
    held = {key: each for key, each in record.open.items() if key != task_id}
    if owners:
        held[task_id] = msgspec.structs.replace(hold, owners=owners)
    return msgspec.structs.replace(record, open=held)


class Used(NamedTuple):
    """By the run record of a task that has ended."""

    task_id: str
    tokens: int
    time_ms: int
    context: int
    """Tokens of prompt and output."""
    pool_id: str
    replica_id: str


def settle(record: SessionRecord, used: Used, now_ms: int) -> SessionRecord:
    """The task is paid for, once. One that nobody reserved for is paid for all the same: it has run."""
    if used.task_id in record.settled:
        return record
    spent = record.spent
    changes = {}
    if used.tokens and not record.closed_ms:
        changes = {
            "kv_warmth": True,
            "kv_tokens": used.context,
            "pool_id": used.pool_id,
            "replica_id": used.replica_id,
        }
    return msgspec.structs.replace(
        record,
        spent=SessionAmounts(
            tokens=spent.tokens + used.tokens,
            time_ms=spent.time_ms + used.time_ms,
            nano=spent.nano + used.tokens * record.nano_per_token,
        ),
        open={key: hold for key, hold in record.open.items() if key != used.task_id},
        settled=(*record.settled, used.task_id),
        used_ms=max(now_ms, record.used_ms),
        **changes,
    )


def warmed(record: SessionRecord, pool_id: str, replica_id: str) -> SessionRecord:
    """Its task under way has its first token."""
    if record.closed_ms or (record.kv_warmth and record.replica_id == replica_id):
        return record
    return msgspec.structs.replace(record, kv_warmth=True, pool_id=pool_id, replica_id=replica_id)


def terms(record: SessionRecord, wish: Wish, policy: SessionPolicy) -> SessionTerms:
    """Of a task that was reserved for."""
    limits, hold = in_force(record.limits, policy), record.open.get(wish.task_id)
    amounts = hold.amounts if hold is not None else SessionAmounts(tokens=wish.tokens)
    bound = limits.tokens is not None or limits.nano is not None
    return SessionTerms(
        session_id=record.session_id,
        tokens_max=amounts.tokens if bound else None,
        time_max_ms=amounts.time_ms or None,
        nano_per_token=record.nano_per_token,
        remaining=remaining(record, policy),
    )


def _over(record: SessionRecord, engine: str | None = None) -> OrchError:
    why = "was deleted" if record.closed_ms else "had no task for too long and has ended"
    return OrchError(
        ErrorCode.INVALID_PARAMS,
        f"session {record.session_id} {why}",
        engine=engine,
        policy_label=PolicyLabel.SESSION_ENDED,
        hint="take a new session_id",
    )
