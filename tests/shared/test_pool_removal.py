"""A pool that goes takes along what was wished of it, whoever writes at the same time."""

from typing import Any

import pytest

from llorch_shared import streams
from llorch_shared.bus.port import WrongSequence
from llorch_shared.desired import pools
from llorch_shared.desired.entries import Author
from llorch_shared.desired.orders import drain
from llorch_shared.wire.audit import AuditRecord
from support.bus_worlds import MemoryWorld
from support.node_harness import mock_pool


async def test_a_pool_is_removed_with_its_drain_and_on_record_while_somebody_writes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bus = await MemoryWorld().connect()
    await bus.ensure(streams.base())
    told: list[AuditRecord] = []

    async def record(one: AuditRecord) -> None:
        told.append(one)

    by, pool = Author(actor="test", identity="", record=record), mock_pool()
    await pools.create(bus, pool, by)
    await drain(bus, pool.id, by, deadline_ms=1)
    remove, lost = type(pools.DRAINS).remove, 0

    async def contested(self: Any, *args: Any, **more: Any) -> None:
        nonlocal lost
        if self is pools.DRAINS and not lost:
            lost += 1
            raise WrongSequence("somebody else was first")
        await remove(self, *args, **more)

    monkeypatch.setattr(type(pools.DRAINS), "remove", contested)
    assert await pools.remove(bus, pool.id, by)
    assert told[-1].detail["command"] == "remove"
    assert (await pools.DRAINS.read(bus, pool.id)).value is None
    await bus.close()
