"""Desired pools in the spec bucket: written from the config at start, changed by `orchctl engine` and `orchctl pool`.

Every write compares the version it read, so two operators never overwrite each other unseen; a lost comparison is read
again a few times. Every change is audited: who, by which command, which keys from what to what.
"""

import getpass
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import msgspec

from llorch_ctl.core.pool_keys import Change, changes
from llorch_ctl.exits import Problem
from llorch_shared import audit_chain, streams, subjects
from llorch_shared.bus.port import Bus, BusError, Message, WrongSequence
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.audit import AuditEvent, AuditRecord
from llorch_shared.wire.spec import POOL_DECODER, PoolSpec
from llorch_shared.wire.version import pool_headers

TRIES_MAX: Final = 5
ACTOR: Final = "orchctl"
_DELETED: Final = {"KV-Operation": "DEL"}


class NoEarlier(Exception):
    """The bucket holds no other version of the pool."""


class Revision(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a pool in the bucket; `pool` is None where it was removed."""

    seq: int
    pool: PoolSpec | None


class Changed(msgspec.Struct, frozen=True, kw_only=True):
    """A write that took place, or was not needed: then nothing has changed."""

    pool: PoolSpec
    revision: int
    changes: list[Change]


async def stored(bus: Bus) -> dict[str, PoolSpec]:
    """Desired pools by id."""
    return {pool.id: pool for pool, _ in (await _all(bus)).values()}


async def revision(bus: Bus, pool_id: str) -> Revision:
    """The pool as it is wanted now; sequence 0 where it never was."""
    message = await bus.last(streams.SPEC, _subject(pool_id))
    return Revision(seq=0, pool=None) if message is None else _revision(message)


async def apply(bus: Bus, wanted: Sequence[PoolSpec]) -> list[str]:
    """Make the bucket hold exactly `wanted`. Returns what changed, as sentences."""
    said = []
    present = await _all(bus)
    for pool in wanted:
        before = present.get(pool.id)
        if before is None or before[0] != pool:
            await change(bus, pool.id, partial(_exactly, pool), command="apply")
            said.append(f"pool {pool.id} is {'defined' if before is None else 'changed'}")
    for pool_id in sorted(set(present) - {pool.id for pool in wanted}):
        await remove(bus, pool_id)
        said.append(f"pool {pool_id} is no longer in the config and is removed")
    return said


async def put(bus: Bus, pool: PoolSpec, *, command: str) -> Changed:
    """Make this one pool exactly `pool`."""
    return await change(bus, pool.id, partial(_exactly, pool), command=command)


async def change(
    bus: Bus, pool_id: str, edit: Callable[[PoolSpec | None], PoolSpec], *, command: str = "change"
) -> Changed:
    """Write `edit(the present spec)`; `edit` may be called again when somebody else wrote in between. Raises BusError,
    Problem."""
    for attempt in range(1, TRIES_MAX + 1):
        before = await revision(bus, pool_id)
        pool = edit(before.pool)
        if pool == before.pool:
            return Changed(pool=pool, revision=before.seq, changes=[])
        try:
            return await _write(bus, before, pool, command)
        except WrongSequence:
            if attempt == TRIES_MAX:
                raise
    raise AssertionError("unreachable: the last try returns or raises")


async def rollback(bus: Bus, pool_id: str) -> Changed:
    """Write the version before the present one, as a new one: the same again undoes it. Raises NoEarlier; WrongSequence
    when somebody else writes at the same time, whose change nobody wished to take back; BusError, Problem."""
    history = [_revision_if_readable(message) for message in await bus.replay(streams.SPEC, _subject(pool_id))]
    for earlier in reversed(history[:-1]):
        if earlier.pool is not None and earlier.pool != history[-1].pool:
            return await _write(bus, history[-1], earlier.pool, f"rollback to revision {earlier.seq}")
    raise NoEarlier(pool_id)


async def remove(bus: Bus, pool_id: str) -> None:
    """Delete the spec; a pool that is not there is fine."""
    for attempt in range(1, TRIES_MAX + 1):
        before = await revision(bus, pool_id)
        if before.pool is None:
            return
        try:
            await bus.store(_subject(pool_id), b"", expect_seq=before.seq, headers=_DELETED)
        except WrongSequence:
            if attempt == TRIES_MAX:
                raise
        else:
            await _audit(bus, pool_id, "remove", before.seq, ["removed"])
            return


async def _write(bus: Bus, before: Revision, pool: PoolSpec, command: str) -> Changed:
    written = await bus.store(
        _subject(pool.id), msgspec.json.encode(pool), expect_seq=before.seq, headers=pool_headers(pool)
    )
    made = changes(before.pool, pool)
    await _audit(bus, pool.id, command, before.seq, [str(each) for each in made])
    return Changed(pool=pool, revision=written.seq, changes=made)


async def _audit(bus: Bus, pool_id: str, command: str, before: int, said: list[str]) -> None:
    record = AuditRecord(
        event=AuditEvent.POOL_CHANGED,
        task_id=pool_id,
        at_ms=now_ms(),
        actor=ACTOR,
        identity=user(),
        pool_id=pool_id,
        detail={"command": command, "revision_before": before, "changes": said},
    )
    try:
        await bus.store_batch(audit_chain.alone(record))
    except BusError as error:
        raise Problem(
            f"pool {pool_id} is changed, but the record of it is not stored: {error or type(error).__name__}",
            fix="look at the bus: orchctl status",
        ) from error


def user() -> str:
    """Who is at the terminal."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return f"uid {os.getuid()}"


def _exactly(wanted: PoolSpec, _: PoolSpec | None) -> PoolSpec:
    return wanted


def _subject(pool_id: str) -> str:
    return subjects.spec(subjects.pool_key(pool_id))


def _revision(message: Message) -> Revision:
    return Revision(seq=message.seq, pool=None if message.deleted else POOL_DECODER.decode(message.data))


def _revision_if_readable(message: Message) -> Revision:
    """What a release with other keys has written counts as none."""
    try:
        return _revision(message)
    except msgspec.MsgspecError:
        return Revision(seq=message.seq, pool=None)


async def _all(bus: Bus) -> dict[str, tuple[PoolSpec, int]]:
    messages = await bus.snapshot(streams.SPEC, subjects.spec("pool.*"))
    pools = [(POOL_DECODER.decode(m.data), m.seq) for m in messages if not m.deleted]
    return {pool.id: (pool, seq) for pool, seq in pools}
