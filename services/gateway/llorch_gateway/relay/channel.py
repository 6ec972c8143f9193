"""The live frames of one task, for the readers of this process.

A channel made at admission keeps what arrives until the first reader sits down, so that the usual client, which opens
the stream right after its 202, costs no read of the stored stream. What it keeps is bounded; beyond that the reader
reads the stored stream like any late one.
"""

import asyncio
import logging
from typing import Final

from llorch_gateway.relay.notices import Notices
from llorch_shared import subjects
from llorch_shared.streaming.endings import was_cancelled
from llorch_shared.streaming.reader import Reader
from llorch_shared.wire.frames import BadFrame, Cursor, Kind, peek

QUIET_FIRST_S: Final = 2.0
QUIET_MAX_S: Final = 10.0
"""Silence after which a reader's task is looked up, since its last frame may have been lost: after the first bound,
then each time twice as long, up to the second."""

log = logging.getLogger(__name__)


class Seat:
    """One reader and whoever waits for it to have something."""

    __slots__ = (
        "_waiter",
        "arrived",
        "channel",
        "check_due",
        "closed",
        "first_seq",
        "heartbeat_due",
        "look_at_tip",
        "named_attempt",
        "notice_due",
        "notices",
        "patience_s",
        "pump",
        "quiet_since",
        "reader",
        "replay_from",
        "replay_near",
        "sending_since",
        "sent_at",
        "subject",
        "touched",
    )

    def __init__(self, channel: "Channel", reader: Reader, now: float) -> None:
        self.channel: Final = channel
        self.reader: Final = reader
        self.arrived: Final = now
        self.first_seq = 1
        """Sequence of the token log before which it has nothing of this stream."""
        self.replay_from = 1
        """Sequence of the token log from which the next replay reads …"""
        self.replay_near: tuple[float, ...] = ()
        """… or how long before its arrival, for a reader that comes from another gateway: each once, while what it
        misses is not found."""
        self.named_attempt = 0
        """By the record, for such a reader."""
        self.look_at_tip = False
        """Before all that: whether the last stored frame proves that it misses nothing."""
        self.subject = subjects.tokens_of_task(channel.task)
        """Of its frames in the stored stream; with the lane, once that is known, the server finds them sooner."""
        self.closed = ""
        """Why the stream stops although its task goes on: `client`, `stalled` or `stopping`."""
        self.pump: asyncio.Task[None] | None = None
        """Who sends what this seat has."""
        self.sending_since: float | None = None
        """Since when the client has not taken the last piece."""
        self.touched = False
        self.quiet_since = now
        self.patience_s = QUIET_FIRST_S
        self.sent_at = now
        self.check_due = False
        self.heartbeat_due = False
        self.notices: Notices | None = None
        """News of its task while that waits, for a reader that wants them."""
        self.notice_due = False
        self._waiter: asyncio.Future[None] | None = None

    def returns(self, named_attempt: int, near: tuple[float, ...]) -> None:
        """Its reader had a connection until a moment ago."""
        self.named_attempt, self.look_at_tip, self.replay_near = named_attempt, True, near

    def reads_anew(self) -> None:
        """The stored stream may be another one now."""
        self.first_seq, self.replay_from, self.replay_near, self.look_at_tip = 1, 1, (), False

    def wake(self) -> None:
        self.touched = True
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def tick(self, now: float, *, heartbeat_s: float, stall_s: float) -> None:
        """Say what time has made due; cut off a client that takes nothing."""
        if self.sending_since is not None:
            if now - self.sending_since >= stall_s:
                self._cut()
            return
        if self.touched:
            self.touched = False
            self.quiet_since = now
            self.patience_s = QUIET_FIRST_S
        heartbeat = bool(heartbeat_s) and now - self.sent_at >= heartbeat_s
        quiet = now - self.quiet_since >= self.patience_s
        if quiet:
            self.quiet_since = now
            self.patience_s = min(QUIET_MAX_S, 2 * self.patience_s)
        notices = self.notices
        news = notices is not None and self._is_waiting() and notices.is_due(now)
        if heartbeat or quiet or news:
            self.notice_due = self.notice_due or news
            self.heartbeat_due = self.heartbeat_due or heartbeat
            self.check_due = self.check_due or quiet
            self.wake()
            self.touched = False

    def _is_waiting(self) -> bool:
        """For what begins the stream. Once that is here there are no news any more."""
        if not self.reader.has_begun:
            return True
        self.notices = None
        return False

    def close(self, why: str) -> None:
        self.closed = self.closed or why
        self.wake()

    def _cut(self) -> None:
        if not self.closed and self.pump is not None:
            self.closed = "stalled"
            self.pump.cancel()

    async def wait(self) -> None:
        """Until somebody wakes this seat. Check for work first: a wake without a waiter is not remembered."""
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter


class Channel:
    """`seats` are the readers of one task here. `keeping` while nobody has sat down yet and every frame since the
    beginning is in hand."""

    __slots__ = (
        "_buffer_bytes",
        "_kept_bytes",
        "created",
        "ended",
        "holding",
        "kept",
        "seats",
        "silenced",
        "task",
        "waiters",
    )

    def __init__(self, task: str, *, now: float, buffer_bytes: int, keep: bool) -> None:
        self.task: Final = task
        self.created: Final = now
        self.seats: list[Seat] = []
        self.kept: list[bytes] | None = [] if keep else None
        self._kept_bytes = 0
        self._buffer_bytes: Final = buffer_bytes
        self.holding = False
        self.silenced = False
        self.ended = False
        self.waiters: list[asyncio.Future[None]] = []
        """Those who wait for the terminal event."""

    def frame(self, data: bytes) -> None:
        """A live frame. Runs in the bus reader, once per bus message: nothing is decoded."""
        try:
            header = peek(data)
        except BadFrame as error:
            log.warning("a message on the token subject of %s is not a frame: %s", self.task, error)
            return
        for seat in self.seats:
            seat.reader.live(header, data)
            seat.wake()
        if self.kept is not None:
            self._keep(data)
        if header.kind is Kind.END or header.kind is Kind.ERROR:
            self._end(cancelled=header.kind is Kind.END and was_cancelled(data))

    def sit(self, cursor: Cursor | None, *, now: float) -> Seat:
        kept, self.kept = self.kept, None
        reader = Reader(cursor, buffer_bytes=self._buffer_bytes, in_step=kept is not None)
        if self.silenced:
            reader.silence()
        if self.holding:
            reader.hold()
        for data in kept or ():
            reader.live(peek(data), data)
        seat = Seat(self, reader, now)
        self.seats.append(seat)
        return seat

    def leave(self, seat: Seat) -> None:
        if seat in self.seats:
            self.seats.remove(seat)

    def interrupt(self) -> None:
        """The bus was away: frames may be missing, and the stored stream may have been made anew."""
        self.kept = None
        for seat in self.seats:
            seat.reads_anew()
            seat.reader.lost()
            seat.wake()

    def hold(self) -> None:
        """A cancel is under way: tokens wait until the terminal event tells whether it won."""
        if not self.ended:
            self.holding = True
            for seat in self.seats:
                seat.reader.hold()

    def release(self) -> None:
        self.holding = False
        for seat in self.seats:
            seat.reader.release()
            seat.wake()

    def silence(self) -> None:
        """The record says cancelled: no token may leave from now on, and whoever waits may look at it."""
        self.silenced = True
        for seat in self.seats:
            seat.reader.silence()
            seat.check_due = True
            seat.wake()

    def _end(self, *, cancelled: bool) -> None:
        self.ended = True
        self.holding = False
        if cancelled:
            self.silenced = True
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _keep(self, data: bytes) -> None:
        assert self.kept is not None
        self._kept_bytes += len(data)
        if self._kept_bytes > self._buffer_bytes:
            self.kept = None
        else:
            self.kept.append(data)
