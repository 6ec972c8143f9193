"""Generations of the mock engine: deterministic words, sent when they are due.

The text follows from prompt and seed: word 0 is their digest, word k is `w<k>`. With stamps on, each word is the
monotonic clock in microseconds instead.

Not here: slots and pace of the engine (`mock_slots.py`).
"""

import hashlib
from typing import Any, Final, Protocol

import msgspec

from llorch_poold.mock_chat import ChatWish, call_deltas, frame, last_frames
from llorch_poold.mock_chat import progress as chat_progress
from llorch_poold.mock_faults import BROKEN, FLOOD_BYTES, MISCOUNTED, STOPS, Fault, FaultKind
from llorch_poold.mock_frames import LAST_CHUNK, chunk, frames, stamped_frames, weighed_frame, weights, word_frame
from llorch_poold.mock_prefill import Prefill
from llorch_poold.mock_text import cut_at, stop_in

BLOCK_TOKENS: Final = 48


class Completion(msgspec.Struct, kw_only=True):
    """The fields of POST /completion that the mock obeys."""

    prompt: str
    n_predict: int = 16
    seed: int = 0
    stream: bool = False
    return_progress: bool = False
    cache_prompt: bool = True
    id_slot: int = -1
    stop: tuple[str, ...] = ()
    n_probs: int = 0
    chat: bool = False
    """It came as a chat with tools, and is answered as one."""
    tool: dict[str, Any] | None = None
    """The one that is called."""


def asked_as_chat(wish: ChatWish) -> Completion:
    return Completion(
        prompt=wish.prompt,
        n_predict=wish.max_tokens,
        seed=wish.seed,
        stream=wish.stream,
        return_progress=wish.return_progress,
        cache_prompt=wish.cache_prompt,
        n_probs=wish.n_probs,
        id_slot=wish.id_slot,
        chat=True,
        tool=wish.tools[0] if wish.calls else None,
    )


class Socket(Protocol):
    """Where a generation writes."""

    def write(self, data: bytes) -> None: ...

    def cut(self) -> None: ...

    def ended(self) -> None: ...


def digest(prompt: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}\n{prompt}".encode()).hexdigest()[:8]


def text_of(prompt: str, seed: int, tokens: int) -> str:
    """The whole text of one generation, for whoever wants to compare."""
    return "".join([f" {digest(prompt, seed)}", *(f" w{index}" for index in range(1, tokens))][:tokens])


def tokens_of(prompt: str) -> int:
    return max(1, len(prompt.split()))


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
        self.prompt_tokens = tokens_of(request.prompt)
        self.prompt_read = 0
        word = digest(request.prompt, request.seed)
        self._call: Final = call_deltas(request.tool, word) if request.tool is not None else []
        wanted = len(self._call) or _directive(request.prompt)
        total = request.n_predict if wanted is None else min(wanted, request.n_predict)
        text = text_of(request.prompt, request.seed, total)
        self._stop: Final = stop_in(text, request.stop)
        self._cut: Final = cut_at(text, request.stop) if request.stop else None
        """The texts before a stop word; None where there is none."""
        self.reason: Final = "word" if self._cut else "limit" if wanted is None or wanted > request.n_predict else "eos"
        self.total: Final = len(self._cut) if self._cut else total

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
            progress = (
                b'data: {"index":0,"content":"","tokens":[0],"stop":false,"id_slot":-1,"tokens_predicted":0,'
                b'"prompt_progress":{"total":%d,"cache":0,"processed":%d,"time_ms":1}}\n\n'
            ) % (self.prompt_tokens, self.prompt_read)
            self._socket.write(
                chunk(chat_progress(self.prompt_tokens, self.prompt_read) if self.request.chat else progress)
            )
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
        if self.request.chat:
            data = b"".join(self._chat_frame(index) for index in range(first, first + count))
        elif self.request.n_probs:
            data = b"".join(self._weighed_frame(index) for index in range(first, first + count))
        elif self._engine.stamp:
            data = stamped_frames(first, count)
        elif self._fault is not None and self._kind is FaultKind.DRIFT and first >= self._fault.after:
            data = b"".join(word_frame(index, f" d{index}") for index in range(first, first + count))
        elif self._fault is not None and self._kind is FaultKind.GAP and first <= self._fault.after < first + count:
            data = b"".join(self._frame(index) for index in range(first, first + count) if index != self._fault.after)
        elif self._cut is not None:
            data = b"".join(word_frame(index, self._cut[index]) for index in range(first, first + count))
        elif first == 0:
            data = word_frame(0, f" {digest(self.request.prompt, self.request.seed)}")
            if count > 1:
                data += frames(1, count - 1)
        else:
            data = frames(first, count)
        if data:
            self._socket.write(chunk(data))

    def _word(self, index: int) -> str:
        if self._cut is not None:
            return self._cut[index]
        return f" w{index}" if index else f" {digest(self.request.prompt, self.request.seed)}"

    def _chat_frame(self, index: int) -> bytes:
        if not self._call:
            word = self._word(index)
            return frame(index + 1, {"content": word}, self._weights(word))
        delta = self._call[index]
        return b"" if delta is None else frame(index + 1, {"tool_calls": [delta]}, self._weights("{"))

    def _weights(self, word: str) -> bytes:
        return weights(word, self.request.n_probs) if self.request.n_probs else b""

    def _weighed_frame(self, index: int) -> bytes:
        return weighed_frame(index, self._word(index), self.request.n_probs)

    def _frame(self, index: int) -> bytes:
        return frames(index, 1) if index else word_frame(0, f" {digest(self.request.prompt, self.request.seed)}")

    def _last(self, content: str) -> dict[str, object]:
        return {
            "index": 0,
            "content": content,
            "tokens": [],
            "id_slot": self.slot,
            "stop": True,
            "model": "mock",
            "tokens_predicted": self.total + (MISCOUNTED if self._kind is FaultKind.MISCOUNT else 0),
            "tokens_evaluated": self.prompt_tokens,
            "truncated": False,
            "stop_type": self.reason,
            "stopping_word": self._stop or "",
            "tokens_cached": self.prompt_tokens + self.total - 1,
            "timings": {
                "cache_n": self.cached,
                "prompt_n": self.prompt_tokens - self.cached,
                "predicted_n": self.total,
            },
        }

    def _finish(self) -> None:
        socket = self._socket
        self._engine.end(self)
        if socket is not None:
            socket.write(chunk(self._last_frames()) + LAST_CHUNK)
            socket.ended()

    def _last_frames(self) -> bytes:
        if not self.request.chat:
            return b"data: %b\n\n" % msgspec.json.encode(self._last(""))
        reason = "length" if self.reason == "limit" else "tool_calls" if self._call else "stop"
        return last_frames(reason, tokens_in=self.prompt_tokens, tokens_out=self.total)

    def _finish_whole(self) -> None:
        socket = self._socket
        self.sent = self.total
        self._engine.tokens_total += self.total
        self._engine.end(self)
        if socket is not None:
            text = text_of(self.request.prompt, self.request.seed, self.total) if not self._cut else "".join(self._cut)
            body = msgspec.json.encode(self._last(text))
            socket.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            )
            socket.ended()


def _directive(prompt: str) -> int | None:
    """`[tokens=N]` in a prompt: the model ends by itself when N tokens stand behind it."""
    _, found, rest = prompt.partition("[tokens=")
    number, _, said = rest.partition("]")
    return max(1, int(number) - len(said.split())) if found and number.isdigit() else None
