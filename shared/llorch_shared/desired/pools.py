"""Pools as they are wanted: made, changed, removed and taken back, whoever asks.

Every write compares the version it read, so two operators never overwrite each other unseen; a lost comparison is read
again a few times where the change is an edit. Every change is audited: who, by which command, which keys from what to
what. What a pool may look like is said by `PoolSpec` alone.
"""

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from llorch_shared import subjects
from llorch_shared.bus.conflicts import TRIES_MAX, retry_on_conflict
from llorch_shared.bus.port import Bus, WrongSequence
from llorch_shared.desired.entries import Author, Entries, Entry
from llorch_shared.pool_keys import HIDDEN, Change, changes
from llorch_shared.wire.audit import AuditEvent, AuditRecord, Detail
from llorch_shared.wire.desired import DRAIN_DECODER, RELOAD_DECODER, PoolDrain, PoolReload
from llorch_shared.wire.spec import POOL_DECODER, PoolSpec

POOLS: Final[Entries[PoolSpec]] = Entries("pool", subjects.pool_key, POOL_DECODER)
DRAINS: Final[Entries[PoolDrain]] = Entries("drain", subjects.drain_key, DRAIN_DECODER)
RELOADS: Final[Entries[PoolReload]] = Entries("reload", subjects.reload_key, RELOAD_DECODER)


class NoEarlier(Exception):
    """The bucket holds no other version of the pool."""


class Exists(Exception):
    """There is a pool of this id."""


class NotThere(Exception):
    """There is no pool of this id."""


class HiddenValue(ValueError):
    """A value stands for one that is not shown, and there is none."""


class Changed(msgspec.Struct, frozen=True, kw_only=True):
    """A write that took place, or was not needed: then nothing has changed."""

    pool: PoolSpec
    revision: int
    changes: list[Change]


async def create(bus: Bus, pool: PoolSpec, by: Author) -> Changed:
    """Raises Exists, HiddenValue, BusError."""
    before = await POOLS.read(bus, pool.id)
    if before.value is not None:
        raise Exists(pool.id)
    try:
        return await _write(bus, before, with_hidden_values(pool, None), "create", by)
    except WrongSequence as error:
        raise Exists(pool.id) from error


async def replace(bus: Bus, pool: PoolSpec, by: Author, *, over: int) -> Changed:
    """Make it exactly `pool`. Raises NotThere; WrongSequence when its version is not `over`; HiddenValue, BusError."""
    before = await POOLS.read(bus, pool.id)
    if before.value is None:
        raise NotThere(pool.id)
    if before.seq != over:
        raise WrongSequence(f"the pool is at version {before.seq}")
    wanted = with_hidden_values(pool, before.value)
    if wanted == before.value:
        return Changed(pool=wanted, revision=before.seq, changes=[])
    return await _write(bus, before, wanted, "replace", by)


async def change(
    bus: Bus, pool_id: str, edit: Callable[[PoolSpec | None], PoolSpec], by: Author, *, command: str
) -> Changed:
    """Write `edit(the present spec)`; `edit` may be called again when somebody else wrote in between. Raises BusError,
    and whatever `edit` raises."""

    async def attempt() -> Changed:
        before = await POOLS.read(bus, pool_id)
        pool = edit(before.value)
        if pool == before.value:
            return Changed(pool=pool, revision=before.seq, changes=[])
        return await _write(bus, before, pool, command, by)

    return await retry_on_conflict(attempt)


async def rollback(bus: Bus, pool_id: str, by: Author) -> Changed:
    """Write the version before the present one, as a new one: the same again undoes it. Raises NoEarlier; WrongSequence
    when somebody else writes at the same time, whose change nobody wished to take back; BusError."""
    history = await POOLS.history(bus, pool_id)
    for earlier in reversed(history[:-1]):
        if earlier.value is not None and earlier.value != history[-1].value:
            return await _write(bus, history[-1], earlier.value, f"rollback to revision {earlier.seq}", by)
    raise NoEarlier(pool_id)


async def remove(bus: Bus, pool_id: str, by: Author, *, over: int | None = None) -> bool:
    """The pool, and what was wished of it. Returns whether there was one. Raises WrongSequence when its version is not
    `over`, if that is said; BusError."""

    async def attempt() -> bool:
        before = await POOLS.read(bus, pool_id)
        if before.value is None:
            return False
        note = _note(by, pool_id, "remove", before.seq, ["removed"])
        await POOLS.remove(bus, pool_id, over=before.seq if over is None else over, by=by, note=note)
        return True

    removed = await retry_on_conflict(attempt, tries=TRIES_MAX if over is None else 1)
    if removed:
        await _forget(bus, pool_id)
    return removed


def with_hidden_values(pool: PoolSpec, before: PoolSpec | None) -> PoolSpec:
    """What is not shown to people comes back as `(hidden)` from whoever writes what he has read, and means: as it was.
    Raises HiddenValue where it was nothing."""
    known: Mapping[str, str] = before.provisioning.env if before is not None else {}
    env = {}
    for name, value in pool.provisioning.env.items():
        if value == HIDDEN and name not in known:
            raise HiddenValue(f"provisioning.env.{name} has no value that {HIDDEN} could stand for")
        env[name] = known[name] if value == HIDDEN else value
    return msgspec.structs.replace(pool, provisioning=msgspec.structs.replace(pool.provisioning, env=env))


async def _forget(bus: Bus, pool_id: str) -> None:
    """A pool of this id that is made later is not born resting. Nodes may end its reload at the same time."""

    async def attempt() -> None:
        drain, reload = await DRAINS.read(bus, pool_id), await RELOADS.read(bus, pool_id)
        if drain.value is not None:
            await DRAINS.remove(bus, pool_id, over=drain.seq)
        if reload.value is not None:
            await RELOADS.remove(bus, pool_id, over=reload.seq)

    await retry_on_conflict(attempt)


async def _write(bus: Bus, before: Entry[PoolSpec], pool: PoolSpec, command: str, by: Author) -> Changed:
    made = changes(before.value, pool)
    note = _note(by, pool.id, command, before.seq, [str(each) for each in made])
    seq = await POOLS.write(bus, pool.id, pool, over=before.seq, by=by, note=note)
    return Changed(pool=pool, revision=seq, changes=made)


def _note(by: Author, pool_id: str, command: str, before: int, said: list[str]) -> AuditRecord:
    detail: Detail = {"command": command, "revision_before": before, "changes": said}
    return by.note(AuditEvent.POOL_CHANGED, pool_id, detail, pool_id=pool_id)
