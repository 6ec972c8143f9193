"""What llama-server answers to a completion: frames of a stream in, tokens out (ENGINES 1.3, 1.5).

An engine's answer is believed when it adds up, and only then: the stream is one, every frame is a frame, each of the
tokens that the last frame counts has come. What does not add up is a failure with its cause, never a shorter text.
Errors are read from the status, from `error` frames, and from bodies that are no stream.

Tokens without a frame: llama-server sends none for a token that ends inside a character. The frame that completes the
character counts for all of them; a character that the end leaves incomplete is never sent.
"""

from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from llorch_poold.adapters.port import (
    ContextFull,
    EngineBroke,
    EngineBusy,
    EngineFailure,
    Finish,
    RequestRejected,
    TokenSink,
)
from llorch_poold.engine_connection import EngineHttpError, Exchange
from llorch_poold.sse_decode import BrokenStream, SseDecoder
from llorch_shared.readable import UNREADABLE
from llorch_shared.wire.frames import TokenLogprob

EVENT_STREAM: Final = "text/event-stream"
ERROR_BYTES_MAX: Final = 64 * 1024
HELD_BACK_MAX: Final = 16
"""Tokens that may end inside one and the same character; four are usual."""
UNSENT_MAX: Final = 4
"""Tokens at the end that no frame was sent for: three of an incomplete character, and the end-of-sequence token."""

_Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class Progress(msgspec.Struct, gc=False):
    total: _Count = 0


class StreamError(msgspec.Struct, gc=False):
    message: str = ""
    type: str = ""
    n_prompt_tokens: int = 0
    n_ctx: int = 0


class _Frame(msgspec.Struct, gc=False):
    content: str = ""
    stop: bool = False
    tokens_predicted: _Count = -1
    """Every frame of a completion has it; -1 is another kind of frame."""
    prompt_progress: Progress | None = None
    completion_probabilities: list[TokenLogprob] = []
    stop_type: str = ""
    stopping_word: str = ""
    tokens_evaluated: _Count = 0
    error: StreamError | None = None


class _ErrorReply(msgspec.Struct):
    error: StreamError


class Mismatch(ValueError):
    """What was sent does not add up."""


_FRAME: Final = msgspec.json.Decoder(_Frame)
_ERROR: Final = msgspec.json.Decoder(_ErrorReply)


class LlamaStream:
    """One generation on its way: HTTP body in, at most `tokens_max` tokens out. `top_logprobs`: with the
    log-probabilities of each, and of so many likeliest in its place."""

    __slots__ = (
        *("_body", "_count", "_decoder", "_ended", "_kind", "_sink", "_status", "_streams", "_tokens_max"),
        *("_top", "exchange"),
    )

    def __init__(self, sink: TokenSink, *, tokens_max: int, top_logprobs: int | None = None) -> None:
        self.exchange: Exchange | None = None
        self._sink: Final = sink
        self._tokens_max: Final = tokens_max
        self._top: Final = top_logprobs
        self._decoder: Final = SseDecoder()
        self._count = 0
        self._status = 0
        self._kind = ""
        self._streams = False
        self._body = b""
        """Of an answer that is no stream."""
        self._ended = False

    def abort(self) -> None:
        self._ended = True
        if self.exchange is not None:
            self.exchange.abort()

    def on_head(self, status: int, kind: str) -> None:
        self._status, self._kind = status, kind
        self._streams = status == 200 and kind == EVENT_STREAM
        if self._streams:
            self._sink.on_begin()

    def on_body(self, data: bytes) -> None:
        if self._ended:
            self.abort()
        elif self._streams:
            self._read(data)
        else:
            self._body += data
            if len(self._body) > ERROR_BYTES_MAX:
                self._fail(refusal(self._status, self._kind, self._body))

    def on_end(self) -> None:
        if self._streams:
            self._fail(EngineBroke("the engine ended the stream without its last frame"))
        else:
            self._fail(refusal(self._status, self._kind, self._body))

    def on_error(self, error: EngineHttpError) -> None:
        self._fail(EngineBroke(str(error)))

    def _read(self, data: bytes) -> None:
        texts: list[str] = []
        more: list[bytes] = []
        try:
            for payload in self._decoder.feed(data):
                frame = _FRAME.decode(payload)
                if frame.error is not None:
                    self._flush(texts, more)
                    self._fail(failure_of(frame.error))
                    return
                if frame.prompt_progress is not None:
                    self._sink.on_prompt(frame.prompt_progress.total)
                elif frame.tokens_predicted < 0:
                    raise Mismatch("a frame without tokens_predicted")
                elif frame.stop:
                    self._finish(frame, texts, more)
                    return
                else:
                    self._take(frame, texts)
                    if self._top is not None:
                        self._weigh(frame, texts, more)
        except Mismatch as error:
            self._flush(texts, more)
            self._fail(EngineBroke(f"what the engine sent does not add up: {error}"))
        except (*UNREADABLE, BrokenStream) as error:
            self._flush(texts, more)
            self._fail(EngineBroke(f"the engine sent something that is not a completion frame: {error}"))
        else:
            self._flush(texts, more)

    def _take(self, frame: _Frame, texts: list[str]) -> None:
        """A frame stands for the tokens up to its `tokens_predicted`. Raises Mismatch."""
        seen = self._count + len(texts)
        fresh = frame.tokens_predicted - seen
        if fresh == 1:
            texts.append(frame.content)
        elif fresh > 1:
            if fresh > HELD_BACK_MAX or frame.content.isascii():
                raise Mismatch(f"after token {seen} came token {frame.tokens_predicted}")
            texts += [*[""] * (fresh - 1), frame.content]
        elif frame.content or fresh < 0:
            raise Mismatch(f"after token {seen} came a text that counts {frame.tokens_predicted}")

    def _weigh(self, frame: _Frame, texts: list[str], more: list[bytes]) -> None:
        """A text's log-probability is that of the last of its tokens."""
        for said in frame.completion_probabilities[:1]:
            if len(more) < len(texts):
                told = msgspec.structs.replace(said, top_logprobs=said.top_logprobs[: self._top])
                more += [*[b""] * (len(texts) - len(more) - 1), b',"logprobs":%b' % msgspec.json.encode(told)]

    def _finish(self, frame: _Frame, texts: list[str], more: list[bytes]) -> None:
        """Raises Mismatch."""
        if frame.content:
            self._take(frame, texts)
            if self._top is not None:
                self._weigh(frame, texts, more)
        unsent = frame.tokens_predicted - self._count - len(texts)
        if not 0 <= unsent <= UNSENT_MAX:
            raise Mismatch(f"the engine counts {frame.tokens_predicted} tokens and sent {self._count + len(texts)}")
        texts += [""] * unsent
        self._flush(texts, more)
        if self._ended:
            return
        self._ended = True
        self._sink.on_finish(
            Finish(
                reason="length" if frame.stop_type == "limit" else "stop",
                tokens_in=frame.tokens_evaluated,
                tokens_out=frame.tokens_predicted,
                stop_sequence=frame.stopping_word or None,
            )
        )

    def _flush(self, texts: Sequence[str], more: Sequence[bytes]) -> None:
        if not texts or self._ended:
            return
        self._count += len(texts)
        if self._count > self._tokens_max:
            self._fail(EngineBroke(f"the engine sent more than the {self._tokens_max} tokens it was asked for"))
        elif more:
            self._sink.on_tokens(texts, [*more, *[b""] * (len(texts) - len(more))])
        else:
            self._sink.on_tokens(texts)

    def _fail(self, failure: EngineFailure) -> None:
        if self._ended:
            return
        self._ended = True
        if self.exchange is not None:
            self.exchange.abort()
        self._sink.on_failure(failure)


def refusal(status: int, kind: str, body: bytes) -> EngineFailure:
    """What an answer to /completion that is no stream means for the task (ENGINES 1.5)."""
    error = told_error(body)
    if error is None:
        said = f"HTTP {status}" if status != 200 else f"with {kind or 'no content type'} and not with a stream"
        return EngineBroke(f"the engine answered {said}")
    if status == 503:
        return EngineBusy(error.message or "the engine has no slot")
    return failure_of(error, status)


def told_error(body: bytes) -> StreamError | None:
    try:
        return _ERROR.decode(body).error
    except UNREADABLE:
        return None


def failure_of(error: StreamError, status: int = 0) -> EngineFailure:
    if error.type == "exceed_context_size_error":
        return ContextFull(f"the prompt has {error.n_prompt_tokens} tokens, the pool's context holds {error.n_ctx}")
    if error.type == "invalid_request_error":
        return RequestRejected(f"the engine refuses the request: {error.message}")
    if error.type == "unavailable_error":
        return EngineBusy(error.message)
    return EngineBroke(f"the engine failed{f' with HTTP {status}' if status else ''}: {error.message}")
