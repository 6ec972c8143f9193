"""A service that starts before its bus is ready waits, says why, and stops when asked to."""

import asyncio
from typing import Any

import pytest

from llorch_shared import streams
from llorch_shared.bus import patience
from llorch_shared.bus.patience import ensure_patiently, unless_stopped
from llorch_shared.bus.port import NoStream
from llorch_shared.bus.topology import Topology
from llorch_shared.lifecycle import Stop
from support.bus_worlds import eventually


class Bus:
    """Has no JetStream for the first `refusals` questions."""

    name = "poold/node-1"

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals
        self.asked = 0

    async def ensure(self, _: Topology) -> None:
        self.asked += 1
        if self.asked <= self.refusals:
            raise NoStream("JetStream not enabled")


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PAUSE_FIRST_S", 0.001)
    monkeypatch.setattr(patience, "PAUSE_MAX_S", 0.001)


async def test_a_bus_without_jetstream_is_waited_for_and_told(caplog: pytest.LogCaptureFixture) -> None:
    bus: Any = Bus(3)
    assert await ensure_patiently(bus, streams.base(), Stop())
    assert bus.asked == 4
    assert "JetStream not enabled" in caplog.text


async def test_the_wish_to_stop_ends_the_waiting() -> None:
    bus: Any = Bus(1_000_000)
    stop = Stop()
    waiting = asyncio.create_task(ensure_patiently(bus, streams.base(), stop))
    await eventually(lambda: bus.asked > 2)
    stop.wish("SIGTERM")
    assert not await asyncio.wait_for(waiting, 5)


async def test_what_fails_for_another_reason_is_raised() -> None:
    async def broken() -> None:
        raise ValueError("not the bus")

    with pytest.raises(ValueError, match="not the bus"):
        await unless_stopped(Stop(), broken())
