"""A task's stream read straight from the bus, as events: each token once, in order, across attempts, restarts of the
bus and lost frames, up to its one end. The rules are `streaming.reader`'s, what is stored is `stored_stream`'s. Here
are the subscription, and when what is looked for.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Final, TypeAlias

import msgspec

from llorch_shared import subjects
from llorch_shared.bus.port import Bus, BusError
from llorch_shared.errors import ErrorBody
from llorch_shared.stored_stream import BEGINNING, Ask, StoredStream
from llorch_shared.streaming import endings
from llorch_shared.streaming.reader import Reader
from llorch_shared.wire.frames import BadFrame, Cursor, End, Event, Metrics, Started, Token, peek, split_events

log = logging.getLogger(__name__)

StreamEvent: TypeAlias = Started | Token | Metrics | End | ErrorBody

BUFFER_BYTES: Final = 1024 * 1024
"""Kept for a consumer that does not keep up; beyond it the stored stream is read instead."""
QUIET_S: Final = 2.0
"""A stream that says nothing for so long may have ended unheard: its record is asked."""
PACE_FIRST_S: Final = 0.05
PACE_MAX_S: Final = 1.0
GONE_AFTER_S: Final = 75.0
"""A node keeps the frames of an ended task for 60 s: what is missing for longer will not come back."""

_KINDS: Final[dict[str, type[StreamEvent]]] = {
    "started": Started,
    "token": Token,
    "metrics": Metrics,
    "end": End,
    "error": ErrorBody,
}


class StreamReading:
    """One reading of one task. `lost` is told when the connection was away. `ask`: the gateways, for what is stored."""

    def __init__(self, bus: Bus, task: str, cursor: Cursor | None, *, ask: Ask) -> None:
        self._bus: Final = bus
        self._task: Final = task
        self._subject: Final = subjects.tokens_of_task(task)
        self._reader: Final = Reader(cursor, buffer_bytes=BUFFER_BYTES, in_step=False)
        self._arrived: Final = asyncio.Event()
        self._loop: Final = asyncio.get_running_loop()
        self._stored: Final = StoredStream(bus, task, ask)
        self._place = BEGINNING
        self._anew = False
        """The log may be another one, whose places are others."""
        self._missing_since: float | None = None
        self._lacks: tuple[int, float] | None = None
        """The next token, and since when it is known that the task has ended and has it."""

    def lost(self) -> None:
        self._anew = True
        self._reader.lost()
        self._arrived.set()

    async def events(self) -> AsyncIterator[StreamEvent]:
        """Until the end or an error, which is the last one. Raises BusError when the bus forbids it."""
        listening = await self._bus.tail(self._subject, self._heard)
        try:
            while True:
                while data := self._reader.take():
                    for event in split_events(data):
                        if (typed := _typed(event)) is not None:
                            yield typed
                if self._reader.done:
                    return
                if self._reader.wants_replay and self._bus.connected:
                    await self._read_on()
                else:
                    await self._wait()
        finally:
            await listening.close()

    def _heard(self, _subject: bytes, data: bytes) -> None:
        try:
            self._reader.live(peek(data), data)
        except BadFrame as error:
            log.warning("a message on the token subject of %s is not a frame: %s", self._task, error)
        self._arrived.set()

    async def _wait(self) -> None:
        self._arrived.clear()
        try:
            async with asyncio.timeout(QUIET_S):
                await self._arrived.wait()
        except TimeoutError:
            await self._look_at_record()

    async def _read_on(self) -> None:
        """Take in what is stored from where the last look ended."""
        if self._anew:
            self._anew, self._place = False, BEGINNING
        reader, place = self._reader, self._place
        before, refused_at, more = reader.next_index, None, True
        reader.begin_replay(anew=place == BEGINNING)
        try:
            while more and not reader.done:
                page = await self._stored.page(place)
                if page.anew:
                    self._place = BEGINNING
                    reader.abort_replay()
                    await asyncio.sleep(PACE_FIRST_S)
                    return
                for at, frame in page.frames:
                    if not self._taken(frame) and refused_at is None:
                        refused_at = at
                place, more = page.place, page.more
        except BusError as error:
            log.info("the stored stream of %s cannot be read now: %s", self._task, error)
            reader.abort_replay()
            await asyncio.sleep(PACE_MAX_S)
            return
        self._place = place if refused_at is None else refused_at
        if reader.end_replay():
            self._missing_since = None
        else:
            await self._missing(progress=reader.next_index > before)

    def _taken(self, data: bytes) -> bool:
        try:
            return self._reader.replayed(data)
        except BadFrame as error:
            log.warning("a stored message of %s is not a frame: %s", self._task, error)
            return True

    async def _missing(self, *, progress: bool) -> None:
        """Tokens are missing: their node publishes them again, or they are gone."""
        now = self._loop.time()
        if progress or self._missing_since is None:
            self._missing_since = now
        away_s = now - self._missing_since
        if away_s > GONE_AFTER_S:
            self._reader.finish(endings.frames_gone())
            return
        await asyncio.sleep(min(PACE_MAX_S, max(PACE_FIRST_S, away_s)))

    async def _look_at_record(self) -> None:
        """If it is final, the last frame was missed: look once more at what is stored, then end as the record says."""
        end = await self._stored.end(self._place)
        if end is None:
            return
        reader = self._reader
        if not endings.was_cancelled(end) and reader.next_index < peek(end).last:
            now = self._loop.time()
            if self._lacks is None or self._lacks[0] != reader.next_index:
                self._lacks = reader.next_index, now
            if now - self._lacks[1] > GONE_AFTER_S:
                reader.finish(endings.frames_gone())
            else:
                reader.lost()
            return
        reader.finish(end)


def _typed(event: Event) -> StreamEvent | None:
    """None for a kind that this release does not know."""
    kind = _KINDS.get(event.event)
    return None if kind is None else msgspec.json.decode(event.data, type=kind)
