"""Generations of the mock engine: their words are sent when they are due, until the last, a fault, or the loss of the
reader. What the words are is in `mock_output.py`, slots and pace of the engine in `mock_slots.py`.
"""

from typing import Final, Protocol

from llorch_poold.mock_faults import BROKEN, FLOOD_BYTES, STOPS, Fault, FaultKind
from llorch_poold.mock_frames import LAST_CHUNK, chunk
from llorch_poold.mock_output import Completion, Output
from llorch_poold.mock_prefill import Prefill

BLOCK_TOKENS: Final = 48


class Socket(Protocol):
    """Where a generation writes."""

    def write(self, data: bytes) -> None: ...

    def cut(self) -> None: ...

    def ended(self) -> None: ...


class Pace(Protocol):
    """The engine that its generations share, as `MockEngine` has it."""

    tokens_total: int

    @property
    def rate(self) -> float: ...

    @property
    def prefill_s(self) -> float: ...

    @property
    def stamp(self) -> bool: ...

    @property
    def prefill(self) -> Prefill: ...

    def now(self) -> float: ...

    def schedule(self, generation: "Generation") -> None: ...

    def end(self, generation: "Generation") -> None: ...


class Generation:
    """One completion, from its request to its last frame or the loss of its reader."""

    def __init__(self, engine: Pace, socket: Socket, request: Completion, fault: Fault | None) -> None:
        self._engine: Final = engine
        self._socket: Socket | None = socket
        self._fault: Final = fault
        self._kind: Final = fault.kind if fault is not None else FaultKind.NONE
        self.request: Final = request
        self.slot = -1
        self.cached = 0
        """Prompt tokens that its slot held already."""
        self.sent = 0
        self.due = 0.0
        self.paused = False
        self.over = False
        self._flooded = 0
        self.log_number = 0
        self._output: Final = Output(request, fault, stamp=engine.stamp)
        self.total: Final = self._output.total
        self.prompt_tokens = self._output.prompt_tokens
        self.prompt_read = 0

    def begin(self) -> None:
        """Its slot is free: send the head, read the prompt, then send tokens when they are due."""
        if self._kind is FaultKind.HANG and self._fault is not None and self._fault.after == 0:
            return
        if self._socket is not None and self.request.stream:
            self._socket.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
        if self._engine.prefill.rate:
            self._engine.prefill.add(self)
        else:
            self.prompt_read = self.prompt_tokens
            self.read_on()

    def read_on(self) -> None:
        """A part of the prompt was read, perhaps the last."""
        if self._socket is not None and self.request.stream and self.request.return_progress:
            self._socket.write(chunk(self._output.progress(self.prompt_read)))
        if self.prompt_read < self.prompt_tokens:
            return
        prefill_s = self._engine.prefill_s
        if self._kind is FaultKind.PREFILL and self._fault is not None:
            prefill_s = self._fault.ms / 1000
        rate = self._engine.rate
        if not self.request.stream and rate:
            prefill_s += self.total / rate
        self.due = self._engine.now() + prefill_s
        self._engine.schedule(self)

    def advance(self, now: float) -> None:
        """Send every token that is due, and arrange for the next."""
        if self.over or self.paused:
            return
        if not self.request.stream:
            self._finish_whole()
            return
        rate = self._engine.rate
        count = min(self.total - self.sent, 1 + int((now - self.due) * rate) if rate else BLOCK_TOKENS)
        limit = self._faulty_at()
        if limit is not None:
            count = min(count, limit - self.sent)
        if count > 0:
            self._send(count)
            if rate:
                self.due += count / rate
        if limit is not None and self.sent >= limit:
            self._fail()
        elif self.sent >= self.total:
            self._finish()
        else:
            self._engine.schedule(self)

    def reader_left(self) -> None:
        self._socket = None
        if self._kind is not FaultKind.REFUSE_CANCEL:
            self._engine.prefill.left(self, lambda: self._engine.end(self))

    def resume(self) -> None:
        self.paused = False
        if self.slot >= 0 and not self.over and self.prompt_read >= self.prompt_tokens:
            self._engine.schedule(self)

    def _faulty_at(self) -> int | None:
        if self._fault is None or self._kind not in STOPS:
            return None
        return min(self._fault.after, self.total)

    def _fail(self) -> None:
        socket = self._socket
        if self._kind is FaultKind.HANG or socket is None:
            return
        if self._kind is FaultKind.FLOOD:
            self._flood()
            return
        if self._kind is FaultKind.RESET:
            socket.cut()
        elif self._kind is FaultKind.EOF:
            socket.write(LAST_CHUNK)
            socket.ended()
        else:
            socket.write(chunk(BROKEN[self._kind]))
            socket.ended()
        self._engine.end(self)

    def _flood(self) -> None:
        """Until the reader leaves. `advance` comes again when the socket has room."""
        if self._socket is not None:
            self._socket.write(chunk(BROKEN[FaultKind.FLOOD] if self._flooded == 0 else b"x" * FLOOD_BYTES))
            self._flooded += 1
            self._engine.schedule(self)

    def _send(self, count: int) -> None:
        first = self.sent
        self.sent += count
        self._engine.tokens_total += count
        if self._socket is None:
            return
        data = self._output.frames(first, count)
        if data:
            self._socket.write(chunk(data))

    def _finish(self) -> None:
        socket = self._socket
        self._engine.end(self)
        if socket is not None:
            socket.write(chunk(self._output.last_frames(slot=self.slot, cached=self.cached)) + LAST_CHUNK)
            socket.ended()

    def _finish_whole(self) -> None:
        socket = self._socket
        self.sent = self.total
        self._engine.tokens_total += self.total
        self._engine.end(self)
        if socket is not None:
            body = self._output.whole(slot=self.slot, cached=self.cached)
            socket.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            )
            socket.ended()
