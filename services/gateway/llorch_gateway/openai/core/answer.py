"""Frames of a token stream as the answer of an OpenAI client: chunks of a stream, or one whole body.

The text of a token is in its frame as JSON already. A chunk is made of it by slicing: nothing is decoded per token,
and what leaves at once is one chunk. Only the end, once per stream, is decoded.
"""

import re
from abc import ABC, abstractmethod
from typing import Final

import msgspec

from llorch_gateway.openai.core import errors
from llorch_gateway.openai.core.request import Asked
from llorch_shared.errors import ErrorBody, ErrorCode
from llorch_shared.wire.frames import End, restarted_at
from llorch_shared.wire.openai import Usage

DONE: Final = b"data: [DONE]\n\n"
HEARTBEAT: Final = b":\n\n"
CANCELLED: Final = "cancelled"

_ID: Final = b"id: "
_TEXTS: Final = re.compile(rb'\nevent: token\ndata: \{"t":"(.*)","i":[0-9]+\}\n\n')
_TOKEN: Final = b'\nevent: token\ndata: {"t":'
_INDEX: Final = b',"i":'
_END: Final = b"event: end\ndata: "
_ERROR: Final = b"event: error\ndata: "
_METRICS: Final = b"event: metrics\n"
_EMPTY: Final = b'""'
_encode: Final = msgspec.json.Encoder().encode
_ENDS: Final = msgspec.json.Decoder(End)
_ERRORS: Final = msgspec.json.Decoder(ErrorBody)
_RESTARTED: Final = ErrorBody(
    code=ErrorCode.WORKER_RESET,
    message="the output began anew, and what was sent of it cannot be taken back",
)


class Answer(ABC):
    """What both kinds of answer read from the frames. `over`: nothing more is to come."""

    def __init__(self, asked: Asked, *, created: int) -> None:
        self.asked: Final = asked
        self._id: Final = f"{'chatcmpl' if asked.chat else 'cmpl'}-{asked.task.task_id}"
        self._created: Final = created
        self.over = False
        self.error: ErrorBody | None = None
        self._generates = False
        """The first token has come, with or without text."""
        self._end: End | None = None

    def take(self, data: bytes) -> tuple[bytes, bool]:
        """Whole frames in. The JSON text of what they say, empty for nothing, and whether there was a heartbeat."""
        if not self.over and data.startswith(_ID):
            tokens = _TEXTS.findall(data)
            if len(tokens) == data.count(b"\n\n"):
                self._generates = True
                text = tokens[0] if len(tokens) == 1 else b"".join(tokens)
                return b'"%b"' % text if text else b"", False
        return self._take_mixed(data)

    def _take_mixed(self, data: bytes) -> tuple[bytes, bool]:
        """Frames that are not all tokens: the first ones, the last ones, and what is said in between."""
        texts: list[bytes] = []
        alive = False
        for event in data.split(b"\n\n"):
            if self.over:
                break
            if event.startswith(_ID):
                line = event.find(b"\n")
                if event.startswith(_TOKEN, line):
                    text = event[line + len(_TOKEN) : event.rfind(_INDEX)]
                    if text != _EMPTY:
                        texts.append(text)
                    self._generates = True
                else:
                    self._terminal(event[line + 1 :])
            elif event.startswith(_METRICS):
                if restarted_at(event) is not None:
                    self._restarted(texts)
            elif event.startswith(_ERROR):
                self._terminal(event)
            elif event == b":":
                alive = True
        if len(texts) < 2:
            return texts[0] if texts else b"", alive
        return b'"%b"' % b"".join([text[1:-1] for text in texts]), alive

    def _terminal(self, event: bytes) -> None:
        """The last event, with or without an id before it."""
        self.over = True
        if event.startswith(_END):
            self._end = _ENDS.decode(event[len(_END) :])
            if self._end.finish_reason == CANCELLED:
                self.error = errors.CANCELLED
        elif event.startswith(_ERROR):
            self.error = _ERRORS.decode(event[len(_ERROR) :])
        else:
            self.error = ErrorBody(code=ErrorCode.INTERNAL, message="the stream holds an event of an unknown kind")

    @abstractmethod
    def _restarted(self, texts: list[bytes]) -> None:
        """The output began anew: `texts`, and what was said before them, are void."""

    def _finish_reason(self) -> str:
        assert self._end is not None
        return "length" if self._end.finish_reason == "length" else "stop"

    def _usage(self) -> Usage:
        assert self._end is not None
        tokens_in, tokens_out = self._end.tokens_in or 0, self._end.tokens_out
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
        closing = b"}" if asked.chat else b""
        self._after: Final = closing + b',"logprobs":null,"finish_reason":null}]' + self._tail
        self._greeted = not asked.chat
        self._begun = False

    def feed(self, data: bytes) -> bytes:
        text, alive = self.take(data)
        out = self._before + text + self._after if text else b""
        if self._generates and not self._greeted:
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
        self.error = _RESTARTED


class Whole(Answer):
    """Collects the stream; `body` is the answer once it is over without an error."""

    def __init__(self, asked: Asked, *, created: int) -> None:
        super().__init__(asked, created=created)
        self._texts: list[bytes] = []

    def feed(self, data: bytes) -> None:
        text, _ = self.take(data)
        if text:
            self._texts.append(text[1:-1])

    def body(self) -> bytes:
        text = msgspec.Raw(b'"%b"' % b"".join(self._texts))
        choice = {"index": 0, "logprobs": None, "finish_reason": self._finish_reason()}
        message = {"role": "assistant", "content": text, "refusal": None}
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
        texts.clear()
