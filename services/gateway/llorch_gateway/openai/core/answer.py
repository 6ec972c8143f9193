"""Frames of a token stream as the answer of an OpenAI client: chunks of a stream, or one whole body.

A chunk of text is made by slicing, as `core/completion_frames.py` says, and what leaves at once is one chunk. Pieces
of a call are a chunk of their own behind the text that came with them.
"""

from typing import Any, Final

import msgspec

from llorch_gateway.core.completion_frames import RESTARTED, CompletionFrames
from llorch_gateway.core.tool_calls import Calls
from llorch_gateway.openai.core import errors
from llorch_gateway.openai.core.logprobs import Weights
from llorch_gateway.openai.core.request import Asked
from llorch_shared.errors import ErrorBody
from llorch_shared.wire.frames import TokenLogprob
from llorch_shared.wire.openai import Usage

DONE: Final = b"data: [DONE]\n\n"
HEARTBEAT: Final = b":\n\n"

_encode: Final = msgspec.json.Encoder().encode


class Answer(CompletionFrames):
    """What both kinds of answer know."""

    def __init__(self, asked: Asked, *, created: int) -> None:
        super().__init__(asked.task)
        self.asked: Final = asked
        self._id: Final = f"{'chatcmpl' if asked.chat else 'cmpl'}-{asked.task.task_id}"
        self._created: Final = created

    def _finish_reason(self) -> str:
        assert self.end is not None
        reason = "length" if self.end.finish_reason == "budget" else self.end.finish_reason
        return reason if reason in ("length", "tool_calls") else "stop"

    def _usage(self) -> Usage:
        assert self.end is not None
        tokens_in, tokens_out = self.end.tokens_in or 0, self.end.tokens_out
        return Usage(prompt_tokens=tokens_in, completion_tokens=tokens_out, total_tokens=tokens_in + tokens_out)


class Chunks(Answer):
    """`feed` gives the bytes of the stream. An error before the first of them gives none: it can still be the answer.
    Until the first token nothing is said but heartbeats, for only then is it sure that the engine takes the prompt."""

    def __init__(self, asked: Asked, *, created: int) -> None:
        super().__init__(asked, created=created)
        kind = "chat.completion.chunk" if asked.chat else "text_completion"
        head = {"id": self._id, "object": kind, "created": created, "model": asked.model}
        self._head: Final = b"data: " + _encode(head)[:-1]
        self._tail: Final = b',"usage":null}\n\n' if asked.usage else b"}\n\n"
        self._before: Final = self._head + (
            b',"choices":[{"index":0,"delta":{"content":' if asked.chat else b',"choices":[{"index":0,"text":'
        )
        self._closing: Final = b"}" if asked.chat else b""
        self._after: Final = self._closing + b',"logprobs":null,"finish_reason":null}]' + self._tail
        self._weights: Final = Weights(asked)
        self._greeted = not asked.chat
        self._begun = False

    def feed(self, data: bytes) -> bytes:
        text, alive = self.take(data)
        if self.logprobs:
            out = self._weighed(text or b'""', self.logprobs)
        else:
            out = self._before + text + self._after if text else b""
        if self.calls:
            out += self._called()
        if self.generates and not self._greeted:
            self._greeted = True
            out = self._greeting() + out
        if self.over:
            out += self._last(begun=self._begun or bool(out))
        elif alive:
            out += HEARTBEAT
        self._begun = self._begun or bool(out)
        return out

    def broken(self, error: ErrorBody) -> bytes:
        """The stream goes no further, for a reason that is not the task's."""
        self.over = True
        return errors.event(errors.told_in_stream(error))

    def _weighed(self, text: bytes, logprobs: list[TokenLogprob]) -> bytes:
        told = _encode(self._weights.told(logprobs))
        return self._before + text + self._closing + b',"logprobs":%b,"finish_reason":null}]' % told + self._tail

    def _called(self) -> bytes:
        choice = b'{"index":0,"delta":{"tool_calls":%b},"logprobs":null,"finish_reason":null}' % _encode(self.calls)
        return self._head + b',"choices":[%b]' % choice + self._tail

    def _greeting(self) -> bytes:
        choice = b'{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}'
        return self._head + b',"choices":[%b]' % choice + self._tail

    def _last(self, *, begun: bool) -> bytes:
        if self.error is not None:
            return errors.event(errors.told_in_stream(self.error)) if begun else b""
        said = b'"delta":{}' if self.asked.chat else b'"text":""'
        choice = b'{"index":0,%b,"logprobs":null,"finish_reason":"%b"}' % (said, self._finish_reason().encode())
        out = self._head + b',"choices":[%b]' % choice + self._tail
        if self.asked.usage:
            out += self._head + b',"choices":[],"usage":%b}\n\n' % _encode(self._usage())
        return out + DONE

    def _restarted(self, texts: list[bytes]) -> None:
        self.over = True
        self.error = RESTARTED


class Whole(Answer):
    """Collects the stream; `body` is the answer once it is over without an error."""

    def __init__(self, asked: Asked, *, created: int) -> None:
        super().__init__(asked, created=created)
        self._texts: list[bytes] = []
        self._calls: Final = Calls()
        self._logprobs: list[TokenLogprob] = []

    def feed(self, data: bytes) -> None:
        text, _ = self.take(data)
        if text:
            self._texts.append(text[1:-1])
        self._calls.take(self.calls)
        self._logprobs += self.logprobs

    def body(self) -> bytes:
        text = msgspec.Raw(b'"%b"' % b"".join(self._texts))
        asks = self.asked.task.top_logprobs is not None
        weights = Weights(self.asked).told(self._logprobs) if asks else None
        choice = {"index": 0, "logprobs": weights, "finish_reason": self._finish_reason()}
        calls = self._calls.made()
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if calls:
            message |= {"content": text if self._texts else None, "tool_calls": calls}
        return _encode(
            {
                "id": self._id,
                "object": "chat.completion" if self.asked.chat else "text_completion",
                "created": self._created,
                "model": self.asked.model,
                "choices": [{**choice, **({"message": message} if self.asked.chat else {"text": text})}],
                "usage": self._usage(),
            }
        )

    def _restarted(self, texts: list[bytes]) -> None:
        """What came before is void."""
        self._texts.clear()
        self._calls.clear()
        self._logprobs.clear()
        texts.clear()
