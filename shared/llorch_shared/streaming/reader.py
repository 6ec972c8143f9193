"""One reader of one token stream: frames in from wherever they come, bytes out in order, each index once.

Frames reach a reader twice and out of step: live from the bus, and from the stored stream when it joins late, lost
some, or was too slow. This state machine puts them together. It knows no bus, no socket and no clock; its owner asks
`take()` for bytes to send and `wants_replay` for whether the stored stream must be read.

    LIVE ──gap, overflow, lost()──▶ BEHIND ──begin_replay()──▶ REPLAYING ──end_replay()──▶ LIVE (or BEHIND again)

Never: an index twice or out of order, a second `started`, anything after the terminal event, a token after a cancel,
half of one text behind half of another. That the output began anew is said between the tokens where it did.
"""

from enum import IntEnum
from typing import Final

from llorch_shared.streaming.anchor import touches
from llorch_shared.streaming.endings import parted, was_cancelled
from llorch_shared.streaming.held import HeldFrames
from llorch_shared.streaming.outgoing import Outgoing
from llorch_shared.wire.frames import (
    Cursor,
    Header,
    Kind,
    announced_attempt,
    goes_on_at,
    peek,
    restarted_at,
    tokens_after,
)

_TERMINAL: Final = (Kind.END, Kind.ERROR)
_METRICS_REMEMBERED: Final = 32


class Mode(IntEnum):
    LIVE = 0
    BEHIND = 1
    """Live frames are ignored: the stored stream has them and will be read from `next_index` on."""
    REPLAYING = 2
    """Live frames are kept until the stored ones have been taken in."""


class Reader:
    """`buffer_bytes` bounds what is kept for a reader that does not keep up; beyond it metrics frames go first, then
    the reader is served from the stored stream. Cost of a live frame in step: O(1), nothing decoded."""

    __slots__ = (
        "_anchored",
        "_attempt",
        "_buffer_bytes",
        "_held",
        "_holding",
        "_log_attempt",
        "_metrics_seen",
        "_named",
        "_out",
        "_refused",
        "_restarted_at",
        "_said_by",
        "_silenced",
        "_started",
        "done",
        "metrics_dropped",
        "mode",
        "next_index",
    )

    def __init__(self, cursor: Cursor | None, *, buffer_bytes: int, in_step: bool) -> None:
        """`in_step`: every frame since the stream's beginning will come live, so there is nothing to read first."""
        self.next_index = 0 if cursor is None else cursor.token + 1
        self._attempt = 0
        self._said_by = 0 if cursor is None else cursor.attempt
        """The attempt of the last token this reader has; 0 when that is not known."""
        self._log_attempt = 0
        """The attempt that speaks where the next replay begins."""
        self._anchored = True
        """Whether what was replayed touches what this reader has: nothing lies between."""
        self._named = 0
        """The attempt that the record named, while what is replayed does not touch what this reader has."""
        self._restarted_at = -1
        self._started = cursor is not None
        self._buffer_bytes: Final = buffer_bytes
        self._out: Final = Outgoing()
        self._held: Final = HeldFrames(buffer_bytes)
        self._holding = False
        self._silenced = False
        self._refused = False
        """Whether tokens before a frame were found missing since the last replay began."""
        self._metrics_seen: dict[int, None] = {}
        self.mode = Mode.LIVE if in_step else Mode.BEHIND
        self.done = False
        self.metrics_dropped = 0

    @property
    def has_begun(self) -> bool:
        """Whether anything of the stream has come, now or to this client before."""
        return self._started or self.done or self._attempt > 0

    # What comes in

    def live(self, header: Header, data: bytes) -> None:
        """A frame as the bus delivers it."""
        if self.done:
            return
        if self.mode is Mode.LIVE:
            if not self._accept(header, data):
                self.mode = Mode.BEHIND
            elif self._out.size > self._buffer_bytes:
                self._relieve()
            return
        if header.kind is Kind.END and was_cancelled(data):
            self._accept(header, data)
            return
        if header.kind in _TERMINAL:
            self._holding = False
        if self.mode is Mode.REPLAYING:
            self._held.add(header, data)

    def lost(self) -> None:
        """Live frames may have been missed, for example while the bus was away."""
        if self.mode is Mode.LIVE:
            self.mode = Mode.BEHIND
        self._held.incomplete = True

    @property
    def wants_replay(self) -> bool:
        """True once what is in hand has been taken and the stored stream must be read to go on."""
        return self.mode is Mode.BEHIND and not self._out and not self.done

    def begin_replay(self, *, anew: bool = True, near: int = 0) -> None:
        """`anew`: from the beginning of the stored stream, else from where the last replay ended. In it an attempt
        speaks up to the next one's announcement, however early that was heard live.

        `near`, the attempt that the record named: from some place late in the stored stream, before which no later one
        was announced, to find the few tokens since the last of this reader. What is read is passed over until something
        is found that touches the last one; it counts only if there is."""
        self.mode = Mode.REPLAYING
        self._attempt = self._said_by if near else 0 if anew else self._log_attempt
        self._anchored = not near
        self._named = near
        self._refused = False
        self._held.clear()

    def replayed(self, data: bytes) -> bool:
        """A stored frame, in stream order. False: it follows a hole in the stored stream and must be given again in
        the next replay, from its place on."""
        if self.done:
            return True
        header = peek(data)
        if not self._anchored:
            self._anchored = touches(header, data, self._said_by, self.next_index, named=self._named)
            if not self._anchored:
                return True
        taken = self._accept(header, data, self._anchored and not self._refused)
        if not taken:
            self._refused = True
        if not self._refused:
            self._log_attempt = self._attempt
        return taken

    def tip(self, data: bytes) -> None:
        """The last stored frame, in a replay that is `near`. Where that is this reader's last token, whoever the record
        names has said nothing yet; one that was sent again there leaves a hole before what comes next."""
        header = peek(data)
        if header.kind is Kind.TOKENS and (header.attempt, header.last + 1) == (self._said_by, self.next_index):
            self._anchored = True
            self._log_attempt = self._said_by
        else:
            self.replayed(data)

    def end_replay(self) -> bool:
        """All stored frames were given. Returns whether the reader is in step now; otherwise replay again, later, and
        anew if it was `near`."""
        if self.done:
            return True
        in_step = self._anchored and not (self._held.incomplete or self._refused)
        for header, data in self._held.take():
            if self.done:
                break
            if not self._accept(header, data):
                in_step = False
                break
        self.mode = Mode.LIVE if in_step or self.done else Mode.BEHIND
        return in_step or self.done

    def abort_replay(self) -> None:
        """The stored stream could not be read now."""
        if not self.done:
            self.mode = Mode.BEHIND
            self._held.clear()

    def finish(self, terminal: bytes) -> None:
        """End the stream with this event whatever is missing: the task's record is final, or the frames are gone."""
        if not self.done:
            self._holding = False
            self._end(terminal)

    # Cancel: no token after the receipt (DESIGN section 4)

    def hold(self) -> None:
        """A cancel is under way: nothing leaves until the terminal event tells how it ended."""
        if not self.done:
            self._holding = True

    def release(self) -> None:
        self._holding = False

    def silence(self) -> None:
        """The task is cancelled: no token may leave any more, only the terminal event."""
        self._silenced = True
        self._out.drop_tokens()

    # What goes out

    def take(self) -> bytes:
        """What is to be sent next: whole frames, up to `PIECE_BYTES` or one frame that is larger. Empty when there is
        nothing that may be sent now."""
        return b"" if self._holding else self._out.take()

    @property
    def has_more(self) -> bool:
        return bool(self._out) and not self._holding

    # The rules

    def _accept(self, header: Header, data: bytes, proven: bool = False) -> bool:
        """Emit what is new of a frame. False: something before it is missing, and it was not taken. `proven`: it comes
        from the stored stream, where nothing before it was missing."""
        kind = header.kind
        if kind is Kind.TOKENS:
            if header.attempt < self._attempt or header.last < self.next_index:
                return True
            if header.first != self.next_index:
                if header.first > self.next_index:
                    return False
                data = tokens_after(data, self.next_index - 1)
            elif not (self._started or proven):
                return False
            self._started = True
            self._attempt = self._said_by = header.attempt
            self.next_index = header.last + 1
            if not self._silenced:
                self._out.add(data)
            return True
        if kind is Kind.METRICS:
            return self._metrics(data)
        if kind is Kind.STARTED:
            if not self._started:
                self._started = True
                self._out.add(data)
            return True
        return self._terminal(header, data, proven)

    def _terminal(self, header: Header, data: bytes, proven: bool) -> bool:
        if header.attempt < self._attempt:
            return True
        cancelled = header.kind is Kind.END and was_cancelled(data)
        if cancelled:
            self.silence()
        elif header.last > self.next_index or (header.kind is Kind.END and not (self._started or proven)):
            # A server that lost the stream may store its end again before its tokens: they are still to come.
            return False
        self._holding = False
        self._end(data)
        return True

    def _end(self, data: bytes) -> None:
        self._out.add(data)
        self.done = True
        self.mode = Mode.LIVE
        self._held.clear()

    def _metrics(self, data: bytes) -> bool:
        """Metrics have no index: those that may come twice are told apart by their bytes. One of a restart has its
        place, behind the last token that is void."""
        attempt, first, void = announced_attempt(data), goes_on_at(data), restarted_at(data)
        if first is not None:
            if attempt < self._attempt:
                return True
            if first > self.next_index and void is not None:
                return False
            if first < self.next_index and 0 < self._said_by < attempt:
                self._end(parted())
                return True
        self._attempt = max(self._attempt, attempt)
        mark = hash(data)
        if mark in self._metrics_seen or (void is not None and void <= self._restarted_at):
            return True
        if void is not None:
            self._restarted_at = void
        if len(self._metrics_seen) >= _METRICS_REMEMBERED:
            del self._metrics_seen[next(iter(self._metrics_seen))]
        self._metrics_seen[mark] = None
        self._out.add(data)
        return True

    def _relieve(self) -> None:
        """Over the bound: metrics go first; if that is not enough, follow the stored stream from here on."""
        self.metrics_dropped += self._out.drop_metrics()
        if self._out.size > self._buffer_bytes and not self.done:
            self.mode = Mode.BEHIND
