"""One connection to the in-memory server: it stands or is broken, and puts its topology back when it returns."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from llorch_shared.bus.memory_server import MemoryServer
from llorch_shared.bus.port import DISCONNECTED, BusError, Unanswered
from llorch_shared.bus.topology import Topology

log = logging.getLogger(__name__)


class MemoryConnection:
    """The part of the port that is about the connection itself."""

    def __init__(self, server: MemoryServer, name: str) -> None:
        self.name: Final = name
        self.server: Final = server
        self._denied = ""
        self._standing: Final = asyncio.Event()
        self._standing.set()
        self._restored = True
        self._ensured: list[Topology] = []
        self._on_reconnect: list[Callable[[], Awaitable[None]]] = []
        self._on_disconnect: list[Callable[[], None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        server.buses.append(self)

    @property
    def connected(self) -> bool:
        return self._standing.is_set()

    @property
    def problem(self) -> str:
        if not self.connected:
            return DISCONNECTED
        return self._denied or ("" if self._restored else "restoring streams")

    def on_reconnect(self, callback: Callable[[], Awaitable[None]]) -> None:
        self._on_reconnect.append(callback)

    def on_disconnect(self, callback: Callable[[], None]) -> None:
        self._on_disconnect.append(callback)

    def on_cluster_change(self, callback: Callable[[], None]) -> None:
        """Never called: there is one server."""

    def break_connection(self) -> None:
        """This connection alone is lost; `restore_connection` brings it back."""
        if not self._standing.is_set():
            return
        self._standing.clear()
        self._restored = False
        for callback in self._on_disconnect:
            callback()

    async def hang_up(self) -> None:
        self.break_connection()
        self.restore_connection()

    def restore_connection(self) -> None:
        if self._closed or self._standing.is_set() or not self.server.running:
            return
        self._standing.set()
        self._denied = ""
        self.spawn(self._restore())
        self.server.wake()

    async def _restore(self) -> None:
        for topology in tuple(self._ensured):
            self.server.ensure(topology)
        self._restored = True
        self.server.wake()
        for callback in tuple(self._on_reconnect):
            while self.connected:
                try:
                    await callback()
                    break
                except BusError as error:
                    log.warning("%s: a reconnect callback failed, again: %s", self.name, error)
                    await asyncio.sleep(0.01)
                except Exception:
                    log.exception("%s: a reconnect callback failed", self.name)
                    break

    def spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def wait_connected(self, timeout_s: float) -> None:
        if self._closed:
            raise Unanswered("the bus connection was closed")
        try:
            async with asyncio.timeout(timeout_s):
                await self._standing.wait()
        except TimeoutError:
            raise Unanswered("not connected to the bus") from None
        await asyncio.sleep(0)

    async def ensure(self, topology: Topology) -> None:
        await self.wait_connected(10)
        self.server.ensure(topology)
        if topology not in self._ensured:
            self._ensured.append(topology)

    async def forget(self, topology: Topology) -> None:
        if topology in self._ensured:
            self._ensured.remove(topology)

    async def close(self) -> None:
        if self._closed:
            return
        await asyncio.sleep(0)
        self._closed = True
        self._standing.clear()
        for task in tuple(self._tasks):
            task.cancel()
        for interest in [one for one in self.server.interests if one.bus is self]:
            await interest.close()
        if self in self.server.buses:
            self.server.buses.remove(self)
