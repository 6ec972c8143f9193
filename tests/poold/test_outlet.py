"""An engine faster than the bus waits in its own socket."""

import asyncio
from typing import Any

from llorch_poold.outlet import FLUSH_BYTES, PAUSE_BYTES, TokenOutlet
from llorch_shared.bus.port import Unanswered


class SlowBus:
    """Confirms a flush when the test says so."""

    def __init__(self) -> None:
        self.published = 0
        self.flushes: list[asyncio.Future[None]] = []

    def publish(self, subject: str, data: bytes, headers: Any = None) -> None:
        self.published += len(data)

    async def flush(self) -> None:
        self.flushes.append(asyncio.get_running_loop().create_future())
        await self.flushes[-1]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def outlet_on(bus: SlowBus) -> tuple[TokenOutlet, list[bool]]:
    outlet = TokenOutlet(bus)  # type: ignore[arg-type]
    said: list[bool] = []
    outlet.add_reader(said.append)
    return outlet, said


async def test_a_bus_that_keeps_up_is_never_waited_for() -> None:
    bus = SlowBus()
    outlet, said = outlet_on(bus)
    outlet.publish("s", b"x" * FLUSH_BYTES)
    await settle()
    assert (bus.flushes, said) == ([], [False])


async def test_reading_stops_until_the_bus_confirms() -> None:
    bus = SlowBus()
    outlet, said = outlet_on(bus)
    for _ in range(12):
        outlet.publish("s", b"x" * (PAUSE_BYTES // 10))
    await settle()
    assert said == [False, True]
    late: list[bool] = []
    outlet.add_reader(late.append)
    assert late == [True], "an engine that starts meanwhile waits, too"
    bus.flushes[0].set_result(None)
    await settle()
    assert (said[-1], late[-1]) == (False, False)


async def test_a_connection_that_broke_does_not_stop_the_engines_for_ever() -> None:
    bus = SlowBus()
    outlet, said = outlet_on(bus)
    for _ in range(3):
        outlet.publish("s", b"x" * PAUSE_BYTES)
    await settle()
    bus.flushes[0].set_exception(Unanswered("gone"))
    await settle()
    assert said == [False, True, False]
    await outlet.close()
