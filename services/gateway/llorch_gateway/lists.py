"""Lists are read from the bus as they are asked for, up to megabytes for one page: a few at a time in each process, so
that many who list take neither its memory nor its time from those who stream. The others wait their turn. Artifacts,
each of up to 16 MiB and several times that while it is decoded, have turns of their own.
"""

import asyncio
from typing import Final

from llorch_gateway.failures import unavailable
from llorch_gateway.operations import Answer, Ask, Handler, Handlers

AT_ONCE: Final = 2
WAITING_MAX: Final = 64
"""Beyond it a caller is told to come back."""
STEP: Final = 64
"""Messages that are decoded before others have their turn in the loop: a millisecond, of the largest two."""
LISTS: Final = frozenset({"listTasks", "listAudit", "listArtifacts", "listCatalogModels", "listPools", "listTenants"})


ARTIFACTS: Final = frozenset({"getArtifact"})
ARTIFACTS_AT_ONCE: Final = 4


class Turns:
    """Of the operations that `names` are, so many at once."""

    def __init__(self, names: frozenset[str] = LISTS, at_once: int = AT_ONCE) -> None:
        self._names: Final = names
        self._turn: Final = asyncio.Semaphore(at_once)
        self._waiting = 0

    def of(self, handlers: Handlers) -> Handlers:
        """The same, with those in turn."""
        return {name: self._in_turn(handler) if name in self._names else handler for name, handler in handlers.items()}

    def _in_turn(self, handler: Handler) -> Handler:
        async def asked(ask: Ask) -> Answer:
            if self._waiting >= WAITING_MAX:
                raise unavailable("too many lists or artifacts are asked for at once")
            self._waiting += 1
            try:
                await self._turn.acquire()
            finally:
                self._waiting -= 1
            try:
                answer = await handler(ask)
                return Answer(answer.encoded() or None, answer.status, answer.headers, answer.media_type)
            finally:
                self._turn.release()

        return asked
