"""A service's start on a bus that is not there yet: wait, say why, and stop when asked to.

A server that is up without JetStream, or whose streams have no leader yet, is no reason to end: whoever starts this
process again would find the same.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, Final, TypeVar

from llorch_shared.bus.port import Bus, BusError
from llorch_shared.bus.topology import Topology
from llorch_shared.lifecycle import Stop

log = logging.getLogger(__name__)

T = TypeVar("T")
Step = Callable[[], Awaitable[object]]
"""A part of a start that asks the bus. What it did before it failed it does not do twice."""

PAUSE_FIRST_S: Final = 0.2
PAUSE_MAX_S: Final = 5.0
BUS_LOST: Final = 3
"""Exit code of a service whose bus connection ended for good."""
BUS_ENDED: Final = "the bus connection ended for good"
"""The reason for which such a service stops."""
CANCELS_MAX: Final = 10
CANCEL_AGAIN_S: Final = 0.2
"""A wait inside the bus client may swallow a cancel that arrives as it ends (`asyncio.wait_for` before 3.12)."""


async def unless_stopped(stop: Stop, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`; None when the wish to stop came first. Raises what `work` raises."""
    doing = asyncio.create_task(work)
    wish = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((doing, wish), return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        return None
    finally:
        wish.cancel()
        for _ in range(CANCELS_MAX):
            if doing.done():
                break
            doing.cancel()
            await asyncio.wait((doing,), timeout=CANCEL_AGAIN_S)


async def ensure_patiently(bus: Bus, topology: Topology, stop: Stop) -> bool:
    """True when the topology stands; false when the wish to stop came first. Never raises BusError."""
    return await get_through(bus, (lambda: bus.ensure(topology),), stop)


async def get_through(
    bus: Bus, steps: Iterable[Step], stop: Stop, *, waits: Callable[[BusError], None] | None = None
) -> bool:
    """The steps of a start one after the other, each repeated by itself until the bus lets it through, for as long as
    that takes. False when the wish to stop came first. `waits` is told what is in the way. Never raises BusError."""
    return await unless_stopped(stop, _through(bus, steps, waits)) is not None


async def _through(bus: Bus, steps: Iterable[Step], waits: Callable[[BusError], None] | None) -> bool:
    for step in steps:
        pause = PAUSE_FIRST_S
        while (problem := await _problem_of(step)) is not None:
            log.warning(
                "%s cannot start yet, again in %.1f s: %s",
                bus.name,
                pause,
                str(problem) or type(problem).__name__,
                extra={"action": "bus.waits"},
            )
            if waits is not None:
                waits(problem)
            await asyncio.sleep(pause)
            pause = min(PAUSE_MAX_S, 2 * pause)
    return True


async def _problem_of(step: Step) -> BusError | None:
    try:
        await step()
    except BusError as error:
        return error
    return None
