"""A process's life: its loop and the wish to stop."""

import asyncio
import gc
import signal
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

import uvloop


class Stop:
    """The wish to stop. Wishing twice is fine; waiting after the wish returns at once."""

    def __init__(self) -> None:
        self._event: Final = asyncio.Event()
        self.reason = ""

    def __bool__(self) -> bool:
        return self._event.is_set()

    def wish(self, reason: str) -> None:
        if not self._event.is_set():
            self.reason = reason
            self._event.set()

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the wish; false when `timeout_s` passed first."""
        if self._event.is_set():
            return True
        try:
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        except TimeoutError:
            return False
        return True


GC_THRESHOLDS: Final = (50_000, 20, 50)
"""Tasks wait by the ten thousand and hold no cycles: Python's default looks through them all again and again, which is
a quarter of a takeover, and holds up first tokens in a process that has much to look through."""


def run(main: Callable[[Stop], Coroutine[Any, Any, int]]) -> int:
    """Run `main` on uvloop until it returns; SIGTERM and SIGINT become the wish to stop. Returns its exit code."""

    async def guarded() -> int:
        stop = Stop()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.wish, signal.Signals(number).name)
        return await main(stop)

    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(guarded())


async def first_of(*waits: Awaitable[Any]) -> None:
    """Return when the first of `waits` is done, cancelling the others; its exception is raised."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
