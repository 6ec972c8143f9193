"""An engine faster than the bus waits in its own socket, and a node that may not speak does not."""

import asyncio
from typing import Any

from llorch_poold.core.fence import Fence
from llorch_poold.outlet import FLUSH_BYTES, PAUSE_BYTES, FenceLimit, TokenOutlet, fence_clock
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


def open_fence() -> Fence:
    fence = Fence(ttl_s=3600)
    now = fence_clock()
    fence.renewed("node", now, now)
    assert fence.open(fence.epoch, now)
    return fence


def outlet_on(bus: SlowBus, fence: Fence | None = None) -> tuple[TokenOutlet, list[bool]]:
    outlet = TokenOutlet(bus, fence or open_fence())  # type: ignore[arg-type]
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


async def test_nothing_leaves_while_the_fence_is_closed() -> None:
    bus, fence = SlowBus(), open_fence()
    outlet, said = outlet_on(bus, fence)
    fence.close()
    outlet.publish("s", b"x")
    waiting = asyncio.create_task(outlet.wait_open())
    await settle()
    assert (bus.published, waiting.done(), said) == (0, False, [False])
    now = fence_clock()
    fence.renewed("node", now, now)
    outlet.publish("s", b"x")
    assert bus.published == 0, "a key that is confirmed is not enough"
    assert fence.open(fence.epoch, now)
    outlet.opened()
    await settle()
    assert waiting.done()
    outlet.publish("s", b"x")
    assert bus.published == 1


async def test_engines_wait_when_more_is_withheld_than_can_be_kept() -> None:
    bus, fence = SlowBus(), open_fence()
    outlet, said = outlet_on(bus, fence)
    fence.close()
    for _ in range(3):
        outlet.publish("s", b"x" * (PAUSE_BYTES // 2))
    assert said == [False, True]
    outlet.opened()
    assert said == [False, True, False]


def test_the_connection_is_told_how_long_what_is_written_now_may_wait() -> None:
    fence = open_fence()
    limit = FenceLimit(fence)
    written = limit.until()
    assert not limit.is_over(written)
    assert limit.is_over(fence_clock() - 1), "a time that has passed"
    fence.close()
    assert not limit.is_over(limit.until()), "renewals are sent while the fence is closed"
