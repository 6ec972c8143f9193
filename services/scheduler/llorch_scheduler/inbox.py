"""The one queue into the core. Readers of the bus hand over without waiting; pullers of tasks wait while it is long."""

import asyncio
from collections import deque
from typing import Final

from llorch_scheduler.core.events import Event

EVENTS_MAX: Final = 200_000
TASKS_WAIT_ABOVE: Final = 5_000


class Overflow(RuntimeError):
    """Events arrive faster than they are decided for so long that one would be lost: start again from the bus."""


class Inbox:
    """First in, first out, at most `EVENTS_MAX`."""

    def __init__(self) -> None:
        self._events: Final[deque[Event | asyncio.Future[None]]] = deque()
        self._filled: Final = asyncio.Event()
        self._drained: Final = asyncio.Event()
        self._drained.set()

    def __len__(self) -> int:
        return len(self._events)

    def offer(self, event: Event) -> None:
        """Raises Overflow."""
        if len(self._events) >= EVENTS_MAX:
            raise Overflow(f"{EVENTS_MAX} events wait")
        self._events.append(event)
        self._filled.set()
        if len(self._events) >= TASKS_WAIT_ABOVE:
            self._drained.clear()

    async def drained(self) -> None:
        """Wait while the inbox is long."""
        await self._drained.wait()

    async def take(self) -> Event:
        """The next event; the one taken before counts as decided."""
        while True:
            while not self._events:
                self._filled.clear()
                await self._filled.wait()
            event = self._events.popleft()
            if len(self._events) < TASKS_WAIT_ABOVE:
                self._drained.set()
            if not isinstance(event, asyncio.Future):
                return event
            if not event.done():
                event.set_result(None)

    async def settled(self) -> None:
        """Wait until everything handed over before has been decided."""
        mark: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._events.append(mark)
        self._filled.set()
        await mark
