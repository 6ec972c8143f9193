"""Frames of a token stream as the clients of other interfaces need them: text, calls of tools, and an end.

The text of a token is in its frame as JSON already: answers are made of it by slicing, and nothing is decoded per
token. Only the end, once per stream, is decoded, and of tasks with tools or logprobs what tokens carry besides text.
"""

import re
from abc import ABC, abstractmethod
from typing import Final

import msgspec

from llorch_shared.errors import ErrorBody, ErrorCode
from llorch_shared.wire.frames import End, TokenLogprob, ToolCallDelta, restarted_at
from llorch_shared.wire.task import TaskRequest

CANCELLED: Final = ErrorBody(code=ErrorCode.CANCELLED, message="the task of this answer was cancelled")
RESTARTED: Final = ErrorBody(
    code=ErrorCode.WORKER_RESET,
    message="the output began anew, and what was sent of it cannot be taken back",
)
OBJECTS_FACTOR: Final = 4
"""Memory of decoded log-probabilities over the bytes of their frames, and of the answer that is made of them."""
_ID: Final = b"id: "
_TEXTS: Final = re.compile(rb'\nevent: token\ndata: \{"t":"(.*)","i":[0-9]+\}\n\n')
_DATA: Final = b"\nevent: token\ndata: "
_TOKEN: Final = _DATA + b'{"t":'
_INDEX: Final = b',"i":'
_END: Final = b"event: end\ndata: "
_ERROR: Final = b"event: error\ndata: "
_METRICS: Final = b"event: metrics\n"
_EMPTY: Final = b'""'
_CANCELLED: Final = "cancelled"
_ENDS: Final = msgspec.json.Decoder(End)
_ERRORS: Final = msgspec.json.Decoder(ErrorBody)


class _Extras(msgspec.Struct, gc=False):
    """What a token carries besides its text."""

    tool_calls: list[ToolCallDelta] = []
    logprobs: TokenLogprob | None = None


_EXTRAS: Final = msgspec.json.Decoder(_Extras)


class CompletionFrames(ABC):
    """`over`: nothing more is to come, and `error` or `end` says why."""

    def __init__(self, task: TaskRequest) -> None:
        self.over = False
        self.error: ErrorBody | None = None
        self.end: End | None = None
        self.generates = False
        """The first token has come, with or without text."""
        self._rich: Final = bool(task.tools) or task.top_logprobs is not None
        self.calls: list[ToolCallDelta] = []
        """What the last `take` found of calls."""
        self.logprobs: list[TokenLogprob] = []
        self._taken = 0

    @property
    def held(self) -> int:
        """At most so many bytes are kept of what was taken, where it is collected."""
        return self._taken * (OBJECTS_FACTOR if self._rich else 1)

    def take(self, data: bytes) -> tuple[bytes, bool]:
        """Whole frames in. The JSON text of what they say, empty for nothing, and whether there was a heartbeat."""
        self._taken += len(data)
        if not self.over and data.startswith(_ID):
            tokens = _TEXTS.findall(data)
            if len(tokens) == data.count(b"\n\n"):
                self.generates = True
                if self._rich:
                    self.calls, self.logprobs = [], []
                text = tokens[0] if len(tokens) == 1 else b"".join(tokens)
                return b'"%b"' % text if text else b"", False
        return self._take_mixed(data)

    def _take_mixed(self, data: bytes) -> tuple[bytes, bool]:
        """Frames that are not all tokens, or tokens with more than text."""
        texts: list[bytes] = []
        alive = False
        self.calls, self.logprobs = [], []
        for event in data.split(b"\n\n"):
            if self.over:
                break
            if event.startswith(_ID):
                line = event.find(b"\n")
                if event.startswith(_TOKEN, line):
                    start = line + len(_TOKEN)
                    text = event[start : event.find(_INDEX, start)]
                    if text != _EMPTY:
                        texts.append(text)
                    self.generates = True
                    if self._rich:
                        self._take_extras(event[line + len(_DATA) :])
                else:
                    self._terminal(event[line + 1 :])
            elif event.startswith(_METRICS):
                if restarted_at(event) is not None:
                    self.calls.clear()
                    self.logprobs.clear()
                    self._restarted(texts)
            elif event.startswith(_ERROR):
                self._terminal(event)
            elif event == b":":
                alive = True
        if len(texts) < 2:
            return texts[0] if texts else b"", alive
        return b'"%b"' % b"".join([text[1:-1] for text in texts]), alive

    def _take_extras(self, token: bytes) -> None:
        extras = _EXTRAS.decode(token)
        self.calls += extras.tool_calls
        if extras.logprobs is not None:
            self.logprobs.append(extras.logprobs)

    def _terminal(self, event: bytes) -> None:
        """The last event, with or without an id before it."""
        self.over = True
        if event.startswith(_END):
            self.end = _ENDS.decode(event[len(_END) :])
            if self.end.finish_reason == _CANCELLED:
                self.error = CANCELLED
        elif event.startswith(_ERROR):
            self.error = _ERRORS.decode(event[len(_ERROR) :])
        else:
            self.error = ErrorBody(code=ErrorCode.INTERNAL, message="the stream holds an event of an unknown kind")

    @abstractmethod
    def _restarted(self, texts: list[bytes]) -> None:
        """The output began anew: `texts`, and what was said before them, are void."""
