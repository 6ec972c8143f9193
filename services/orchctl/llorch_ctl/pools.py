"""Desired pools as `orchctl` changes them: written from the config at start, by `orchctl engine` and `orchctl pool`.

What a change is, and how it is kept from overwriting another's, is `llorch_shared.desired`; here is who makes it. The
audit record of a command is a chain of its own, stored before the command ends.
"""

import getpass
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from llorch_ctl.exits import Problem
from llorch_shared import audit_chain
from llorch_shared.bus.port import Bus, BusError
from llorch_shared.desired import pools
from llorch_shared.desired.entries import Author, Entry
from llorch_shared.desired.pools import POOLS, Changed
from llorch_shared.wire.audit import AuditRecord
from llorch_shared.wire.spec import PoolSpec

ACTOR: Final = "orchctl"


def author(bus: Bus) -> Author:
    """Raises Problem when a record of what was done is not stored."""

    async def record(record: AuditRecord) -> None:
        try:
            await bus.store_batch(audit_chain.alone(record))
        except BusError as error:
            what = f"pool {record.pool_id}" if record.pool_id else f"tenant {record.task_id}"
            raise Problem(
                f"{what} is changed, but the record of it is not stored: {error or type(error).__name__}",
                fix="look at the bus: orchctl status",
            ) from error

    return Author(ACTOR, user(), record)


async def stored(bus: Bus) -> dict[str, PoolSpec]:
    """Desired pools by id."""
    return {name: pool for name, (pool, _) in (await POOLS.all(bus)).items()}


async def revision(bus: Bus, pool_id: str) -> Entry[PoolSpec]:
    """The pool as it is wanted now."""
    return await POOLS.read(bus, pool_id)


async def apply(bus: Bus, wanted: Sequence[PoolSpec]) -> list[str]:
    """Make the bucket hold exactly `wanted`. Returns what changed, as sentences."""
    said = []
    present = await stored(bus)
    for pool in wanted:
        before = present.get(pool.id)
        if before != pool:
            await put(bus, pool, command="apply")
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
    """Write `edit(the present spec)`. Raises BusError, Problem."""
    return await pools.change(bus, pool_id, edit, author(bus), command=command)


async def rollback(bus: Bus, pool_id: str) -> Changed:
    """Raises NoEarlier, WrongSequence, BusError, Problem."""
    return await pools.rollback(bus, pool_id, author(bus))


async def remove(bus: Bus, pool_id: str) -> None:
    """Delete the spec; a pool that is not there is fine."""
    await pools.remove(bus, pool_id, author(bus))


def user() -> str:
    """Who is at the terminal."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return f"uid {os.getuid()}"


def _exactly(wanted: PoolSpec, _: PoolSpec | None) -> PoolSpec:
    return wanted
