"""Places in queues that are given back: the admissions of tasks that have a record by now.

They are acknowledged a moment later and many at once: the server syncs that, too, and would do so while the engine's
first token is on its way.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

from llorch_scheduler.core.events import AdmissionRef

GATHER_S: Final = 0.01


class Places:
    """`acknowledge` gives one back. `due` is called when the gathered ones are to be."""

    def __init__(self, acknowledge: Callable[[AdmissionRef], Awaitable[None]], due: Callable[[], None]) -> None:
        self._acknowledge: Final = acknowledge
        self._due: Final = due
        self._refs: list[AdmissionRef] = []
        self._timer: asyncio.TimerHandle | None = None
        self._leaving: Counter[str] = Counter()
        """By queue: what is being acknowledged."""
        self._left: Final = asyncio.Condition()

    def add(self, ref: AdmissionRef) -> None:
        self._refs.append(ref)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GATHER_S, self._expired)

    def _expired(self) -> None:
        self._timer = None
        self._due()

    async def give_back(self) -> None:
        """All that are gathered. Raises what `acknowledge` does."""
        refs, self._refs = self._refs, []
        left = Counter(ref.stream for ref in refs)
        self._leaving += left
        try:
            await asyncio.gather(*map(self._acknowledge, refs))
        finally:
            self._leaving -= left
            async with self._left:
                self._left.notify_all()

    async def come_free(self, stream: str) -> bool:
        """Whether this queue had places to give back; returns when it has. Raises what `acknowledge` does."""
        if any(ref.stream == stream for ref in self._refs):
            await self.give_back()
            return True
        if not self._leaving[stream]:
            return False
        async with self._left:
            await self._left.wait_for(lambda: not self._leaving[stream])
        return True
