"""Reads many subjects of one stream for many who ask at the same time.

A node or a gateway that dies leaves hundreds of token streams at once, and the server walks through the whole log for
each question: those who ask while a walk is under way share the next one.
"""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from llorch_shared.bus.port import Bus, Message

SUBJECTS_MAX: Final = 256
"""Of one walk: bounds what is in memory at once."""


class _Question:
    """What is asked of one subject, by one or several."""

    __slots__ = ("answer", "since")

    def __init__(self, since: float | None) -> None:
        self.since = since
        self.answer: Final[asyncio.Future[Sequence[Message]]] = asyncio.get_running_loop().create_future()


class SharedWalks:
    """Through one stream, one walk at a time. For those who look equally far back: the farthest decides for all."""

    def __init__(self, bus: Bus, stream: str) -> None:
        self._bus: Final = bus
        self._stream: Final = stream
        self._waiting: dict[str, _Question] = {}
        self._walking: asyncio.Task[None] | None = None
        self._loop: Final = asyncio.get_running_loop()

    async def read(self, subject: str, *, since: float | None = None) -> Sequence[Message]:
        """What is stored on one subject, in order; all that was before this call is in it. `since`: not what is older
        than this time of the loop, more or less. Raises BusError."""
        question = self._waiting.get(subject)
        if question is None:
            question = self._waiting[subject] = _Question(since)
        elif question.since is not None:
            question.since = None if since is None else min(since, question.since)
        if self._walking is None or self._walking.done():
            self._walking = asyncio.create_task(self._walk(), name=f"walks through {self._stream}")
        return await asyncio.shield(question.answer)

    async def _walk(self) -> None:
        while self._waiting:
            asked = dict(list(self._waiting.items())[:SUBJECTS_MAX])
            for subject in asked:
                del self._waiting[subject]
            try:
                found = await self._found(asked)
            except Exception as error:  # noqa: BLE001  (whoever asked gets it, and the next walk is made)
                for question in asked.values():
                    question.answer.set_exception(error)
                    question.answer.exception()  # whoever asked may have gone
            else:
                for subject, question in asked.items():
                    question.answer.set_result(found.get(subject, ()))
            finally:
                for question in asked.values():
                    question.answer.cancel()

    async def _found(self, asked: dict[str, _Question]) -> dict[str, list[Message]]:
        oldest = self._loop.time()
        for question in asked.values():
            oldest = 0.0 if question.since is None else min(oldest, question.since)
        within_s = self._loop.time() - oldest if oldest else 0.0
        found: defaultdict[str, list[Message]] = defaultdict(list)
        for message in await self._bus.gather(self._stream, asked.keys(), within_s=within_s):
            found[message.subject].append(message)
        return found
