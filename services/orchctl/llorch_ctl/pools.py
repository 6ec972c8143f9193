"""Desired pools in the spec bucket: written from the config at start, changed by `orchctl engine`.

Every write compares the version it read, so two operators never overwrite each other unseen; a lost comparison is read
again a few times.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import msgspec

from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus, WrongSequence
from llorch_shared.wire.spec import POOL_DECODER, PoolSpec

TRIES_MAX: Final = 5
_DELETED: Final = {"KV-Operation": "DEL"}


async def stored(bus: Bus) -> dict[str, PoolSpec]:
    """Desired pools by id."""
    return {pool.id: pool for pool, _ in (await _all(bus)).values()}


async def apply(bus: Bus, wanted: Sequence[PoolSpec]) -> list[str]:
    """Make the bucket hold exactly `wanted`. Returns what changed, as sentences."""
    said = []
    present = await _all(bus)
    for pool in wanted:
        before = present.get(pool.id)
        if before is None or before[0] != pool:
            await change(bus, pool.id, partial(_exactly, pool))
            said.append(f"pool {pool.id} is {'defined' if before is None else 'changed'}")
    for pool_id in sorted(set(present) - {pool.id for pool in wanted}):
        await remove(bus, pool_id)
        said.append(f"pool {pool_id} is no longer in the config and is removed")
    return said


async def change(bus: Bus, pool_id: str, edit: Callable[[PoolSpec | None], PoolSpec]) -> PoolSpec:
    """Write `edit(the present spec)`; `edit` may be called again when somebody else wrote in between."""
    subject = subjects.spec(subjects.pool_key(pool_id))
    for attempt in range(1, TRIES_MAX + 1):
        message = await bus.last(streams.SPEC, subject)
        present = None if message is None or message.deleted else POOL_DECODER.decode(message.data)
        pool = edit(present)
        try:
            await bus.store(subject, msgspec.json.encode(pool), expect_seq=message.seq if message else 0)
        except WrongSequence:
            if attempt == TRIES_MAX:
                raise
        else:
            return pool
    raise AssertionError("unreachable: the last try returns or raises")


async def remove(bus: Bus, pool_id: str) -> None:
    """Delete the spec; a pool that is not there is fine."""
    subject = subjects.spec(subjects.pool_key(pool_id))
    for attempt in range(1, TRIES_MAX + 1):
        message = await bus.last(streams.SPEC, subject)
        if message is None or message.deleted:
            return
        try:
            await bus.store(subject, b"", expect_seq=message.seq, headers=_DELETED)
        except WrongSequence:
            if attempt == TRIES_MAX:
                raise
        else:
            return


def _exactly(wanted: PoolSpec, _: PoolSpec | None) -> PoolSpec:
    return wanted


async def _all(bus: Bus) -> dict[str, tuple[PoolSpec, int]]:
    messages = await bus.snapshot(streams.SPEC, subjects.spec("pool.*"))
    pools = [(POOL_DECODER.decode(m.data), m.seq) for m in messages if not m.deleted]
    return {pool.id: (pool, seq) for pool, seq in pools}
