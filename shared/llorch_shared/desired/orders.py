"""What is asked of a pool besides its specification: rest, serve again, get another model. The nodes carry it out."""

import secrets

from llorch_shared.bus.conflicts import retry_on_conflict
from llorch_shared.bus.port import Bus, WrongSequence
from llorch_shared.desired.entries import Author
from llorch_shared.desired.pools import DRAINS, POOLS, RELOADS, NotThere
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.audit import AuditEvent, AuditRecord, Detail
from llorch_shared.wire.desired import RELOAD_DEADLINE_MS, PoolDrain, PoolReload, ReloadState


class Underway(Exception):
    """The pool is being reloaded, or rests; the message says which."""


async def drain(bus: Bus, pool_id: str, by: Author, *, deadline_ms: int) -> PoolDrain:
    """From now on the pool takes no tasks; what runs may end within `deadline_ms`. Asked again, the last deadline
    counts. Raises NotThere, BusError."""

    async def attempt() -> PoolDrain:
        if (await POOLS.read(bus, pool_id)).value is None:
            raise NotThere(pool_id)
        before = await DRAINS.read(bus, pool_id)
        wish = PoolDrain(pool_id=pool_id, requested_ms=now_ms(), deadline_ms=deadline_ms, identity=by.identity)
        note = _note(by, pool_id, {"command": "drain", "deadline_ms": deadline_ms})
        await DRAINS.write(bus, pool_id, wish, over=before.seq, by=by, note=note)
        return wish

    return await retry_on_conflict(attempt)


async def undrain(bus: Bus, pool_id: str, by: Author) -> bool:
    """The pool serves again. Returns whether it rested. Raises NotThere, BusError."""

    async def attempt() -> bool:
        if (await POOLS.read(bus, pool_id)).value is None:
            raise NotThere(pool_id)
        before = await DRAINS.read(bus, pool_id)
        if before.value is None:
            return False
        note = _note(by, pool_id, {"command": "undrain"})
        await DRAINS.remove(bus, pool_id, over=before.seq, by=by, note=note)
        return True

    return await retry_on_conflict(attempt)


async def reload(
    bus: Bus, pool_id: str, by: Author, *, new_model_ref: str, deadline_ms: int = RELOAD_DEADLINE_MS
) -> PoolReload:
    """Give the pool another model as a whole, or leave it as it is. One that has the model already is done. Raises
    NotThere, Underway, BusError."""
    pool = (await POOLS.read(bus, pool_id)).value
    if pool is None:
        raise NotThere(pool_id)
    if (await DRAINS.read(bus, pool_id)).value is not None:
        raise Underway(f"pool {pool_id} is drained: its engines start again when it is undrained")
    before = await RELOADS.read(bus, pool_id)
    if before.value is not None and before.value.state is ReloadState.UNDERWAY:
        raise Underway(f"pool {pool_id} is being reloaded to {before.value.new_model_ref}")
    same, at_ms = pool.model == new_model_ref, now_ms()
    wish = PoolReload(
        id=secrets.token_hex(8),
        pool_id=pool_id,
        new_model_ref=new_model_ref,
        old_model_ref=pool.model,
        state=ReloadState.DONE if same else ReloadState.UNDERWAY,
        requested_ms=at_ms,
        deadline_ms=deadline_ms,
        ended_ms=at_ms if same else 0,
        identity=by.identity,
        channel=by.channel,
        former=before.value.and_before() if before.value is not None else (),
    )
    said: Detail = {"command": "reload", "new_model_ref": new_model_ref, "old_model_ref": pool.model}
    try:
        await RELOADS.write(bus, pool_id, wish, over=before.seq, by=by, note=_note(by, pool_id, said))
    except WrongSequence as error:
        raise Underway(f"somebody else reloads pool {pool_id} at this moment") from error
    return wish


def _note(by: Author, pool_id: str, detail: Detail) -> AuditRecord:
    return by.note(AuditEvent.POOL_CHANGED, pool_id, detail, pool_id=pool_id)
