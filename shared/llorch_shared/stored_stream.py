"""What is stored of one stream, page by page: out of the token log, or by asking the gateways where this connection
has no JetStream, as in a tenant's account of its own. Nothing here follows a stream (`stream_reading`).

A place is where to read on. Each source has its own, and a place of the other means the beginning.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

import msgspec

from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus, BusError, NoStream
from llorch_shared.states import FINAL
from llorch_shared.streaming.endings import terminal_frame
from llorch_shared.wire.frames import StoredEvent, StoredEvents
from llorch_shared.wire.run import decode_run

log = logging.getLogger(__name__)

PAGE_BYTES: Final = 128 * 1024
BEGINNING: Final = ""

Ask = Callable[[str, str], Awaitable[StoredEvents]]
"""(task, cursor): the operation listTaskEvents. Raises BusError when nobody can answer now."""


class Stored(NamedTuple):
    frames: Sequence[tuple[str, bytes]]
    """Each behind its place: who reads on from there reads it again."""
    place: str
    more: bool
    anew: bool = False
    """It is from the beginning, although another place was asked for."""


class StoredStream:
    def __init__(self, bus: Bus, task: str, ask: Ask) -> None:
        self._bus: Final = bus
        self._task: Final = task
        self._ask: Final = ask
        self._asks = False

    async def page(self, place: str) -> Stored:
        """Raises BusError."""
        if not self._asks:
            try:
                return await self._of_log(place)
            except NoStream as error:
                asked = await self._answered(place)
                log.info("the stream of %s is read from the gateways: %s", self._task, error)
                self._asks = True
                return asked
        return await self._answered(place)

    async def end(self, place: str) -> bytes | None:
        """The last frame of a task that has ended, as its record tells it; None when that is not known."""
        try:
            if self._asks:
                told = (await self._ask(self._task, place)).end
                return None if told is None else frame_of(told)
            message = await self._bus.last(streams.RUN, subjects.run(self._task))
            record = None if message is None or message.deleted else decode_run(message.data, message.headers)
        except (BusError, msgspec.DecodeError) as error:
            log.info("the record of %s cannot be read now: %s", self._task, error)
            return None
        return terminal_frame(record) if record is not None and record.state in FINAL else None

    async def _of_log(self, place: str) -> Stored:
        known = place.isdecimal()
        page = await self._bus.page(
            streams.TOK,
            subjects.tokens_of_task(self._task),
            from_seq=int(place) if known else 1,
            bytes_max=PAGE_BYTES,
        )
        frames = [(str(message.seq), message.data) for message in page.messages]
        last = str(page.messages[-1].seq + 1) if page.messages else place
        return Stored(frames, last, page.more, anew=bool(place) and not known)

    async def _answered(self, place: str) -> Stored:
        known = "" if place.isdecimal() else place
        told = await self._ask(self._task, known)
        frames = [(place, frame_of(event)) for event in told.events]
        goes_on = bool(known) and known.partition(".")[0] == told.cursor.partition(".")[0]
        return Stored(frames, told.cursor, told.more, anew=bool(place) and not goes_on)


def frame_of(event: StoredEvent) -> bytes:
    """The event as the log has it."""
    of_id = f"id: {event.id}\n" if event.id else ""
    return b"%bevent: %b\ndata: %b\n\n" % (of_id.encode(), event.event.encode(), bytes(event.data))
