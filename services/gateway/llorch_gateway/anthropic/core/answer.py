"""Frames of a token stream as the answer of an Anthropic client: the events of a stream, or one whole message.

Content is a sequence of blocks, one after another: text, and each call of a tool. The text of a token is JSON in its
frame already and goes into a delta by slicing.
"""

from typing import Any, Final

import msgspec

from llorch_gateway.anthropic.core import errors
from llorch_gateway.core.completion_events import CompletionEvents
from llorch_gateway.core.completion_frames import CompletionFrames
from llorch_gateway.core.tool_calls import Calls
from llorch_gateway.openai.core.request import Asked
from llorch_shared.errors import ErrorBody, ErrorCode
from llorch_shared.wire.anthropic import Message, MessageText, MessageToolUse, MessageUsage, StopReason
from llorch_shared.wire.frames import ToolCallDelta

PING: Final = b'event: ping\ndata: {"type":"ping"}\n\n'
_UNREADABLE: Final = ErrorBody(
    code=ErrorCode.INTERNAL, message="the model's call has arguments that are no JSON object"
)
_encode: Final = msgspec.json.Encoder().encode
_ARGUMENTS: Final = msgspec.json.Decoder(dict[str, Any])


class Answer(CompletionFrames):
    """What both kinds of answer know."""

    def __init__(self, asked: Asked) -> None:
        super().__init__(asked.task)
        self._model: Final = asked.model
        self._id: Final = f"msg_{asked.task.task_id}"

    def _stop_reason(self) -> StopReason:
        assert self.end is not None
        if self.end.stop_sequence is not None:
            return "stop_sequence"
        reasons: dict[str, StopReason] = {"length": "max_tokens", "budget": "max_tokens", "tool_calls": "tool_use"}
        return reasons.get(self.end.finish_reason, "end_turn")

    def _usage(self) -> MessageUsage:
        assert self.end is not None
        return MessageUsage(input_tokens=self.end.tokens_in or 0, output_tokens=self.end.tokens_out)


class Events(Answer, CompletionEvents):
    HEARTBEAT = PING

    def __init__(self, asked: Asked, request_id: str) -> None:
        super().__init__(asked)
        self._request_id: Final = request_id
        self._blocks = 0
        """Blocks that were begun; the last of them is open while there is an `_open`."""
        self._open = ""
        """Kind of the open block: `text`, or the index of its call."""

    def _greet(self, out: list[bytes]) -> None:
        usage = MessageUsage(input_tokens=0, output_tokens=0)
        message = Message(id=self._id, model=self._model, content=(), stop_reason=None, stop_sequence=None, usage=usage)
        out.append(_event("message_start", {"type": "message_start", "message": message}))

    def _say(self, text: bytes, out: list[bytes]) -> None:
        if self._open != "text":
            self._begin("text", {"type": "text", "text": ""}, out)
        head = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,' % (self._blocks - 1)
        out.append(head + b'"delta":{"type":"text_delta","text":%b}}\n\n' % text)

    def _call(self, delta: ToolCallDelta, out: list[bytes]) -> None:
        kind = str(delta.index)
        if self._open != kind:
            block = {"type": "tool_use", "id": delta.id or "", "name": delta.function.name or "", "input": {}}
            self._begin(kind, block, out)
        if delta.function.arguments:
            said = {"type": "input_json_delta", "partial_json": delta.function.arguments}
            body = {"type": "content_block_delta", "index": self._blocks - 1, "delta": said}
            out.append(_event("content_block_delta", body))

    def _begin(self, kind: str, block: dict[str, Any], out: list[bytes]) -> None:
        self._close(out)
        self._open = kind
        begun = {"type": "content_block_start", "index": self._blocks, "content_block": block}
        out.append(_event("content_block_start", begun))
        self._blocks += 1

    def _close(self, out: list[bytes]) -> None:
        if self._open:
            self._open = ""
            out.append(_event("content_block_stop", {"type": "content_block_stop", "index": self._blocks - 1}))

    def _finish(self, out: list[bytes]) -> None:
        assert self.end is not None
        self._close(out)
        delta = {"stop_reason": self._stop_reason(), "stop_sequence": self.end.stop_sequence}
        out.append(_event("message_delta", {"type": "message_delta", "delta": delta, "usage": self._usage()}))
        out.append(_event("message_stop", {"type": "message_stop"}))

    def _failed(self, error: ErrorBody) -> bytes:
        return errors.event(error, self._request_id)


class Whole(Answer):
    """Collects the stream; `body` is the message once it is over without an error."""

    def __init__(self, asked: Asked) -> None:
        super().__init__(asked)
        self._texts: list[bytes] = []
        self._calls: Final = Calls()

    def feed(self, data: bytes) -> None:
        text, _ = self.take(data)
        if text:
            self._texts.append(text[1:-1])
        self._calls.take(self.calls)
        if self.end is not None and self.error is None:
            self._check_calls()

    def body(self) -> bytes:
        assert self.end is not None
        text = msgspec.json.decode(b'"%b"' % b"".join(self._texts))
        calls = [
            MessageToolUse(
                id=call.id, name=call.function.name, input=_ARGUMENTS.decode(call.function.arguments or "{}")
            )
            for call in self._calls.made()
        ]
        message = Message(
            id=self._id,
            model=self._model,
            content=(*((MessageText(text=text),) if text else ()), *calls),
            stop_reason=self._stop_reason(),
            stop_sequence=self.end.stop_sequence,
            usage=self._usage(),
        )
        return _encode(message)

    def _check_calls(self) -> None:
        """A call that the limit of tokens cut off is no JSON, and a message cannot hold it: it is left out."""
        for index, call in self._calls.by_index():
            try:
                _ARGUMENTS.decode("".join(call.arguments) or "{}")
            except (msgspec.DecodeError, RecursionError):
                if self.end is not None and self.end.finish_reason in ("length", "budget"):
                    self._calls.drop(index)
                else:
                    self.error = _UNREADABLE

    def _restarted(self, texts: list[bytes]) -> None:
        """What came before is void."""
        self._texts.clear()
        self._calls.clear()
        texts.clear()


def _event(name: str, data: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _encode(data))
