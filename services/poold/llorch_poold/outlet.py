"""Where token frames leave the node: published at once, with a bound on what the bus connection may hold, and only
while the node may speak (`core/fence.py`). What is withheld is in the retention and is published when the fence opens.

Core publishes have no flow control. Beyond `FLUSH_BYTES` since the last confirmed flush the server is asked to confirm
again; beyond `PAUSE_BYTES` the engines are not read until it has, so an engine faster than the bus waits in its own
socket instead of filling this process.
"""

import asyncio
import sys
import time
from collections.abc import Callable
from math import inf
from typing import Final

from llorch_poold.core.fence import Fence
from llorch_shared.bus.port import Bus, BusError

FLUSH_BYTES: Final = 1024 * 1024
PAUSE_BYTES: Final = 8 * 1024 * 1024
FLUSH_TIMEOUT_S: Final = 5.0

Pause = Callable[[bool], None]

_CLOCK: Final = time.CLOCK_BOOTTIME if sys.platform == "linux" else time.CLOCK_MONOTONIC
_read_clock: Final = time.clock_gettime


def fence_clock() -> float:
    """Seconds; goes on while this process or its machine is stopped."""
    return _read_clock(_CLOCK)


class FenceLimit:
    """For the bus connection: what was written while the fence was open is not sent after it has closed."""

    def __init__(self, fence: Fence) -> None:
        self._fence: Final = fence

    def until(self) -> float:
        until = self._fence.until
        return until if until > -inf else inf

    def is_over(self, until: float) -> bool:
        return fence_clock() >= until


class TokenOutlet:
    """One per node."""

    def __init__(self, bus: Bus, fence: Fence) -> None:
        self._bus: Final = bus
        self._fence: Final = fence
        self._publish: Final = bus.publish
        self._withheld = 0
        self._opened: Final = asyncio.Event()
        self._unconfirmed = 0
        self._flushing: asyncio.Task[None] | None = None
        self._readers: set[Pause] = set()
        self._paused = False

    def publish(self, subject: str, data: bytes) -> None:
        if _read_clock(_CLOCK) >= self._fence.until:
            self._withhold(len(data))
            return
        self._publish(subject, data)
        self._unconfirmed += len(data)
        if self._unconfirmed > FLUSH_BYTES:
            self._press()

    def _withhold(self, size: int) -> None:
        """More of it than the retention can be trusted to keep waits in the engines."""
        self._withheld += size
        if self._withheld > PAUSE_BYTES and not self._paused:
            self._set_paused(True)

    def opened(self) -> None:
        """The fence is open and what was withheld has been published."""
        self._withheld = 0
        self._opened.set()
        self._resume()

    async def wait_open(self) -> None:
        """Until this node may speak."""
        while fence_clock() >= self._fence.until:
            self._opened.clear()
            await self._opened.wait()

    def add_reader(self, pause: Pause) -> None:
        """`pause(True)` stops reading one engine, `pause(False)` resumes."""
        self._readers.add(pause)
        pause(self._paused)

    def remove_reader(self, pause: Pause) -> None:
        self._readers.discard(pause)

    def _press(self) -> None:
        if self._flushing is None:
            self._flushing = asyncio.create_task(self._flush(), name="flush tokens")
        if self._unconfirmed > PAUSE_BYTES and not self._paused:
            self._set_paused(True)

    async def _flush(self) -> None:
        """A connection that broke has nothing to confirm: its frames are kept and published again."""
        before = self._unconfirmed
        try:
            async with asyncio.timeout(FLUSH_TIMEOUT_S):
                await self._bus.flush()
        except (BusError, TimeoutError):
            before = self._unconfirmed
        finally:
            self._flushing = None
            self._unconfirmed -= before
            self._resume()

    def _resume(self) -> None:
        if self._paused and max(self._unconfirmed, self._withheld) <= PAUSE_BYTES:
            self._set_paused(False)

    def _set_paused(self, paused: bool) -> None:
        self._paused = paused
        for pause in self._readers:
            pause(paused)

    async def close(self) -> None:
        if self._flushing is not None:
            self._flushing.cancel()
            await asyncio.gather(self._flushing, return_exceptions=True)
