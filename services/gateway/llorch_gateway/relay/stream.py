"""One response: bytes from a seat to a client, until the stream ends, the client leaves or this process stops.

Here is the waiting and the reading of the stored stream; what is sent, and in what order, `streaming.reader` decides.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from llorch_gateway.core import record as records
from llorch_gateway.relay.channel import Seat
from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus, BusError, Message
from llorch_shared.shared_walks import SharedWalks
from llorch_shared.streaming import endings
from llorch_shared.streaming.reader import Reader
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.frames import BadFrame
from llorch_shared.wire.run import RunRecord, decode_run
from llorch_shared.wire.version import Unreadable

log = logging.getLogger(__name__)

REPLAY_BYTES: Final = 128 * 1024
"""Read at once from the stored stream, about: bounds what one late reader costs in memory. Stored messages are from a
hundred bytes to half a megabyte."""
PACE_FIRST_S: Final = 0.02
PACE_MAX_S: Final = 1.0
GONE_AFTER_S: Final = 15.0
"""How long missing tokens are looked for while the bus stands: a node publishes its frames again within seconds of a
bus restart. After it the reader is told that they are gone."""
REPUBLISHED_WITHIN_S: Final = 75.0
"""A node keeps the frames of an ended task for 60 s: tokens of one that ended earlier will not come back."""
HEARTBEAT: Final = b":\n\n"
FAREWELL: Final = b"retry: 500\n\n"
"""Said when this process stops: come back soon, another gateway goes on where this one ended."""

MICROBATCH_S: Final = 0.02
"""With micro-batching, the least time between two writes of tokens."""

Send = Callable[[bytes], Awaitable[None]]


class Replays:
    """Of a process. The server does nothing else for a connection while it looks for messages: who looks among the
    newest shares a walk with the others who do; of those who read from the beginning, `whole` do so at once."""

    def __init__(self, bus: Bus, *, whole: int) -> None:
        self.near: Final = SharedWalks(bus, streams.TOK)
        self.whole: Final = asyncio.Semaphore(whole)


class Stream:
    """Pumps one seat. `send` gets every piece of the body but the last, empty one. `microbatch`: what comes shortly
    after a write waits a moment for more."""

    def __init__(self, seat: Seat, *, bus: Bus, send: Send, replays: Replays, microbatch: bool = False) -> None:
        self._seat: Final = seat
        self._reader: Final = seat.reader
        self._bus: Final = bus
        self._send: Final = send
        self._replays: Final = replays
        self._microbatch: Final = microbatch
        self._task: Final = seat.channel.task
        self._loop: Final = asyncio.get_running_loop()
        self._pace_s = 0.0
        self._replay_at = 0.0
        self._missing_since: float | None = None
        self._looked_at = -1
        """Index at which the stored stream was last read in vain although the record is final."""
        self._looked_since = 0.0

    async def run(self, first: bytes) -> None:
        """Send `first`, then the stream. Returns when it is over for whatever reason; `seat.closed` says which."""
        seat, reader = self._seat, self._reader
        await self._put(first + reader.take())
        while not seat.closed:
            if self._microbatch:
                await self._collect()
            data = reader.take()
            if data:
                await self._put(data)
            elif reader.done:
                return
            elif reader.wants_replay and self._may_replay():
                await self._replay()
            elif seat.check_due:
                seat.check_due = False
                await self._check_record()
            elif seat.heartbeat_due:
                seat.heartbeat_due = False
                await self._put(HEARTBEAT)
            elif seat.notice_due:
                await self._tell_news()
            else:
                await seat.wait()
        if seat.closed == "stopping":
            await self._send(FAREWELL)

    async def _collect(self) -> None:
        """Let tokens gather until the last write is `MICROBATCH_S` ago; the end of a stream waits for nothing."""
        reader = self._reader
        if (early_s := gather_s(reader, since_write_s=self._loop.time() - self._seat.sent_at)) > 0:
            await asyncio.sleep(early_s)

    async def _tell_news(self) -> None:
        seat = self._seat
        seat.notice_due = False
        if seat.notices is not None and not self._reader.has_begun:
            news = seat.notices.frame(self._loop.time())
            if news:
                await self._put(news)

    async def _put(self, data: bytes) -> None:
        """Returns when the client's connection has room for it."""
        seat = self._seat
        seat.sent_at = seat.sending_since = self._loop.time()
        await self._send(data)
        seat.sending_since = None

    def _may_replay(self) -> bool:
        return self._bus.connected and self._loop.time() >= self._replay_at

    async def _replay(self) -> None:
        """Take in what is stored: the last frame, where that may do, else the newest, else all from where this reader
        knows the stream."""
        seat = self._seat
        if seat.look_at_tip:
            seat.look_at_tip = False
            await self._take_newest(self._tip(), self._reader.tip)
        elif seat.replay_near:
            since, seat.replay_near = seat.arrived - seat.replay_near[0], seat.replay_near[1:]
            await self._take_newest(self._replays.near.read(seat.subject, since=since), self._reader.replayed)
        else:
            await self._read_on()

    async def _tip(self) -> Sequence[Message]:
        """The last stored frame: the server knows that one by heart."""
        message = await self._bus.last(streams.TOK, self._seat.subject)
        return () if message is None else (message,)

    async def _take_newest(self, reading: Awaitable[Sequence[Message]], take: Callable[[bytes], object]) -> None:
        """The newest frames, if they prove that nothing lies between them and this reader's last token."""
        reader, seat = self._reader, self._seat
        reader.begin_replay(near=seat.named_attempt)
        try:
            found = await reading
            for message in found:
                take(message.data)
        except (BusError, BadFrame) as error:
            log.info("the newest frames of %s cannot be read now: %s", self._task, error)
            reader.abort_replay()
            return
        if reader.end_replay() and found:
            seat.replay_near, seat.replay_from = (), found[-1].seq + 1

    async def _read_on(self) -> None:
        """From where this reader knows the stored stream, page by page, sending as it comes."""
        reader, seat = self._reader, self._seat
        before = reader.next_index
        position, refused_at = seat.replay_from, 0
        reader.begin_replay(anew=position == seat.first_seq)
        more = True
        try:
            while more and not (reader.done or seat.closed):
                async with self._replays.whole:
                    page = await self._bus.page(streams.TOK, seat.subject, from_seq=position, bytes_max=REPLAY_BYTES)
                more, messages = page.more, page.messages
                for message in messages:
                    position = message.seq + 1
                    if not self._taken(message.data) and not refused_at:
                        refused_at = message.seq
                del page, messages
                while data := reader.take():
                    await self._put(data)
        except BusError as error:
            log.info("the stored stream of %s cannot be read now: %s", self._task, error)
            reader.abort_replay()
            self._again_later(progress=False)
            return
        seat.replay_from = refused_at or position
        if reader.end_replay():
            self._pace_s, self._missing_since = 0.0, None
        else:
            self._again_later(progress=reader.next_index > before)

    def _taken(self, data: bytes) -> bool:
        """What is no frame is passed over, as it is when it comes live."""
        try:
            return self._reader.replayed(data)
        except BadFrame as error:
            log.warning("a stored message on the token subject of %s is not a frame: %s", self._task, error)
            return True

    def _again_later(self, *, progress: bool) -> None:
        """Pace the next replay; give the stream up when its tokens have been missing for too long."""
        now = self._loop.time()
        if progress or not self._bus.connected:
            self._pace_s, self._missing_since = 0.0, None
        else:
            self._missing_since = now if self._missing_since is None else self._missing_since
            if now - self._missing_since > GONE_AFTER_S:
                self._give_up()
                return
        self._pace_s = min(PACE_MAX_S, max(PACE_FIRST_S, 2 * self._pace_s))
        self._replay_at = now + self._pace_s
        self._loop.call_later(self._pace_s, self._seat.wake)

    def _give_up(self) -> None:
        log.warning("token %d of %s is no longer kept anywhere", self._reader.next_index, self._task)
        self._reader.finish(endings.frames_gone())

    async def _check_record(self) -> None:
        """The stream has been quiet. If the task's record is final, its last frame was missed: end with what the
        record says, after one more look at the stored stream (ARCHITECTURE, invariant 3)."""
        record = await self._record()
        if record is None or not records.is_final(record):
            return
        reader = self._reader
        if records.is_cancelled(record):
            reader.silence()
            reader.finish(endings.terminal_frame(record))
        elif self._looked_at != reader.next_index:
            self._looked_at, self._looked_since = reader.next_index, self._loop.time()
            reader.lost()
            self._seat.check_due = True
        elif reader.next_index >= record.tokens_out:
            reader.finish(endings.terminal_frame(record))
        elif self._loop.time() - self._looked_since > GONE_AFTER_S or _ended_s_ago(record) > REPUBLISHED_WITHIN_S:
            self._give_up()
        else:
            reader.lost()

    async def _record(self) -> RunRecord | None:
        if not self._bus.connected:
            return None
        try:
            message = await self._bus.last(streams.RUN, subjects.run(self._task))
        except BusError as error:
            log.info("the record of %s cannot be read now: %s", self._task, error)
            return None
        if message is None or message.deleted:
            return None
        try:
            return decode_run(message.data, message.headers)
        except Unreadable as error:
            log.info("the record of %s is passed over, its frames go on: %s", self._task, error)
            return None


def gather_s(reader: Reader, *, since_write_s: float) -> float:
    """How long tokens wait for more; never with nothing to send, and not when the stream is over."""
    return MICROBATCH_S - since_write_s if reader.has_more and not reader.done else 0.0


def _ended_s_ago(record: RunRecord) -> float:
    return (now_ms() - record.ended_ms) / 1000
