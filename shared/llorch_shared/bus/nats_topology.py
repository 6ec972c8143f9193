"""Keeps the ensured streams and durables standing, and tells who wants to know when they stand again."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from llorch_shared.bus.nats_streams import Streams
from llorch_shared.bus.port import BusError, NoStream, Unanswered
from llorch_shared.bus.topology import Topology

log = logging.getLogger(__name__)

ENSURE_WAIT_S: Final = 10.0
"""How long the first `ensure` waits for a JetStream that is still starting."""
RETRY_FIRST_S: Final = 0.05
RETRY_MAX_S: Final = 1.0

Returned = Callable[[], Awaitable[None]]


class TopologyKeeper:
    """`up` after each connect, `down` after each disconnect; `standing` is set in between, once all is restored."""

    def __init__(self, name: str, streams: Streams) -> None:
        self._name: Final = name
        self._streams: Final = streams
        self._ensured: Final[list[Topology]] = []
        self._callbacks: Final[list[Returned]] = []
        self._restoring: asyncio.Task[None] | None = None
        self.standing: Final = asyncio.Event()
        self.stands: Callable[[], None] = lambda: None
        """Called when everything stands again, before the callbacks."""

    def on_return(self, callback: Returned) -> None:
        self._callbacks.append(callback)

    async def ensure(self, topology: Topology) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + ENSURE_WAIT_S
        delay = RETRY_FIRST_S
        while True:
            try:
                await self._streams.ensure(topology)
                break
            except (NoStream, Unanswered):
                if loop.time() > deadline:
                    raise
            await asyncio.sleep(delay)
            delay = min(RETRY_MAX_S, delay * 2)
        if topology not in self._ensured:
            self._ensured.append(topology)

    def forget(self, topology: Topology) -> None:
        if topology in self._ensured:
            self._ensured.remove(topology)

    def up(self, *, first: bool) -> None:
        if first:
            self.standing.set()
            return
        self.stop()
        self._restoring = asyncio.create_task(self._restore(), name=f"{self._name}: restore")

    def down(self) -> None:
        self.standing.clear()
        self.stop()

    def stop(self) -> None:
        if self._restoring is not None:
            self._restoring.cancel()
            self._restoring = None

    async def wait_standing(self, timeout_s: float) -> bool:
        if not self.standing.is_set():
            try:
                async with asyncio.timeout(timeout_s):
                    await self.standing.wait()
            except TimeoutError:
                return False
        return True

    async def _restore(self) -> None:
        """Streams first (a memory stream of one server is gone with its configuration), then everybody who wants to
        read again. Cancelled by the next disconnect, begun anew by the next reconnect."""
        await self._repeat([self._ensure_all])
        self.standing.set()
        self.stands()
        await self._repeat(list(self._callbacks))

    async def _ensure_all(self) -> None:
        for topology in tuple(self._ensured):
            await self._streams.ensure(topology)

    async def _repeat(self, steps: list[Returned]) -> None:
        """Each step in order, and those that the bus let fail again, so that one does not hold up the others. A step's
        own mistake is logged and not repeated."""
        delay = RETRY_FIRST_S
        while steps:
            failed: list[Returned] = []
            for step in steps:
                try:
                    await step()
                except BusError as error:
                    log.warning("%s: after the reconnect, again in %.2f s: %s", self._name, delay, error)
                    failed.append(step)
                except Exception:
                    log.exception("%s: a reconnect callback failed", self._name)
            if failed:
                await asyncio.sleep(delay)
                delay = min(RETRY_MAX_S, delay * 2)
            steps = failed
