"""Lists are read from the bus as they are asked for, up to megabytes for one page: a few at a time in each process, so
that many who list take neither its memory nor its time from those who stream. The others wait their turn
(`core/turns.py`): no tenant has all turns, or keeps others waiting behind more than one of its own. Who is bound to no
tenant may have all. Artifacts, of up to 16 MiB and several times that while one is decoded, have turns of their own.
"""

import asyncio
from typing import Final

from llorch_gateway.core.turns import TurnOrder
from llorch_gateway.failures import unavailable
from llorch_gateway.operations import Answer, Ask, Handler, Handlers

AT_ONCE: Final = 2
WAITING_MAX: Final = 64
"""Beyond it a caller is told to come back, and of one tenant beyond a quarter of it."""
STEP: Final = 64
"""Messages that are decoded before others have their turn in the loop: a millisecond, of the largest two."""
LISTS: Final = frozenset(
    {
        "listTasks",
        "listTaskEvents",
        "listAudit",
        "listArtifacts",
        "listCatalogModels",
        "listPools",
        "listTenants",
    }
)


ARTIFACTS: Final = frozenset({"getArtifact"})
ARTIFACTS_AT_ONCE: Final = 4


class Turns:
    """Of the operations that `names` are, so many at once."""

    def __init__(self, names: frozenset[str] = LISTS, at_once: int = AT_ONCE) -> None:
        self._names: Final = names
        self._order: Final[TurnOrder[asyncio.Future[None]]] = TurnOrder(at_once, WAITING_MAX)

    def of(self, handlers: Handlers) -> Handlers:
        """The same, with those in turn."""
        return {name: self._in_turn(handler) if name in self._names else handler for name, handler in handlers.items()}

    def _in_turn(self, handler: Handler) -> Handler:
        async def asked(ask: Ask) -> Answer:
            whose = (ask.call.tenant, ask.call.bound)
            await self._turn_of(whose, alone=not ask.call.bound)
            try:
                answer = await handler(ask)
                return Answer(answer.encoded() or None, answer.status, answer.headers, answer.media_type)
            finally:
                self._over(whose)

        return asked

    async def _turn_of(self, whose: tuple[str, bool], *, alone: bool) -> None:
        """Raises OrchError 503."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not self._order.come(whose, turn, alone=alone):
            raise unavailable("too many lists or artifacts are asked for at once")
        self._go_on()
        try:
            await turn
        except asyncio.CancelledError:
            if not self._order.leave(whose, turn):
                self._over(whose)
            raise

    def _over(self, whose: tuple[str, bool]) -> None:
        self._order.done(whose)
        self._go_on()

    def _go_on(self) -> None:
        while (turn := self._order.next()) is not None:
            if not turn.done():
                turn.set_result(None)
