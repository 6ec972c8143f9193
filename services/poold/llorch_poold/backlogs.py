"""Reads what the token log has of streams that earlier attempts began elsewhere.

A node that dies leaves hundreds of them at once, and the server walks through the whole log for each question: those
who ask while a walk is under way share the next one.
"""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

from llorch_shared import streams
from llorch_shared.bus.port import Bus, BusError

SUBJECTS_MAX: Final = 256
"""Of one walk: bounds what is in memory at once."""


class Backlogs:
    """One per node."""

    def __init__(self, bus: Bus) -> None:
        self._bus: Final = bus
        self._waiting: dict[str, asyncio.Future[Sequence[bytes]]] = {}
        self._walking: asyncio.Task[None] | None = None

    async def read(self, subject: str) -> Sequence[bytes]:
        """All that is stored on one token subject, in order; what was stored before this call is in it. At most one
        reader per subject. Raises BusError."""
        asked: asyncio.Future[Sequence[bytes]] = asyncio.get_running_loop().create_future()
        self._waiting[subject] = asked
        if self._walking is None or self._walking.done():
            self._walking = asyncio.create_task(self._walk(), name="read token backlogs")
        return await asked

    async def _walk(self) -> None:
        while self._waiting:
            round_of = dict(list(self._waiting.items())[:SUBJECTS_MAX])
            for subject in round_of:
                del self._waiting[subject]
            try:
                await self._answer(round_of)
            finally:
                for asked in round_of.values():
                    asked.cancel()

    async def _answer(self, round_of: Mapping[str, asyncio.Future[Sequence[bytes]]]) -> None:
        found: defaultdict[str, list[bytes]] = defaultdict(list)
        try:
            for message in await self._bus.gather(streams.TOK, round_of.keys()):
                found[message.subject].append(message.data)
        except BusError as error:
            for asked in round_of.values():
                if not asked.done():
                    asked.set_exception(error)
            return
        for subject, asked in round_of.items():
            if not asked.done():
                asked.set_result(found[subject])
