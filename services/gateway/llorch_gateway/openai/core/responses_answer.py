"""Frames of a token stream as a response: the events of a stream, or one whole object.

Output is a sequence of items, one after another: a message of text, and each call of a tool. What was said is kept
until the end, for the last events say all of it again. The text of a token goes into its delta by slicing.
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from llorch_gateway.core.completion_events import CompletionEvents
from llorch_gateway.core.completion_frames import CompletionFrames
from llorch_gateway.core.tool_calls import Calling
from llorch_gateway.openai.core.responses_request import AskedResponse
from llorch_shared.errors import ErrorBody
from llorch_shared.wire.frames import Logprob, TokenLogprob, ToolCallDelta
from llorch_shared.wire.openai_responses import (
    Incomplete,
    OutputCall,
    OutputMessage,
    OutputText,
    ResponseObject,
    ResponseUsage,
)

HEARTBEAT: Final = b":\n\n"
_CUT: Final = ("length", "budget")
_encode: Final = msgspec.json.Encoder().encode


class _Item:
    """An item on its way: of a call where `calling` is one, else a message."""

    def __init__(self, item_id: str, calling: Calling | None) -> None:
        self.id: Final = item_id
        self.calling: Final = calling
        self.texts: Final[list[bytes]] = []
        self.logprobs: Final[list[TokenLogprob]] = []

    @property
    def text(self) -> str:
        text: str = msgspec.json.decode(b'"%b"' % b"".join(self.texts))
        return text

    def part(self) -> OutputText:
        return OutputText(text=self.text, logprobs=tuple(map(_with_bytes, self.logprobs)))

    def made(self, status: Any) -> OutputMessage | OutputCall:
        if self.calling is None:
            content = (self.part(),) if self.texts else ()
            return OutputMessage(id=self.id, status=status, content=content)
        call = self.calling.made()
        return OutputCall(
            id=self.id, status=status, call_id=call.id, name=call.function.name, arguments=call.function.arguments
        )


class Answer(CompletionFrames):
    """Collects the items; what is made of them is the matter of the two kinds."""

    def __init__(self, asked: AskedResponse, *, created: int) -> None:
        super().__init__(asked.asked.task)
        self._wish: Final = asked.wish
        self._task: Final = asked.asked.task.task_id
        self._created: Final = created
        self._items: Final[list[_Item]] = []
        self._call_index: int | None = None

    def _message(self) -> tuple[_Item, bool]:
        """The message that text belongs to, and whether it is a new item."""
        if self._items and self._items[-1].calling is None:
            return self._items[-1], False
        self._items.append(_Item(f"msg_{len(self._items)}_{self._task}", None))
        return self._items[-1], True

    def _called(self, delta: ToolCallDelta) -> tuple[_Item, Calling, bool]:
        """The call that a piece belongs to, and whether it is a new item."""
        last = self._items[-1] if self._items else None
        new = last is None or last.calling is None or self._call_index != delta.index
        if new:
            self._call_index = delta.index
            self._items.append(_Item(f"fc_{len(self._items)}_{self._task}", Calling()))
        item = self._items[-1]
        assert item.calling is not None
        item.calling.take(delta)
        return item, item.calling, new

    @property
    def _status(self) -> str:
        return "incomplete" if self.end is not None and self.end.finish_reason in _CUT else "completed"

    def _response(self, status: Any, output: tuple[OutputMessage | OutputCall, ...] = ()) -> ResponseObject:
        wish, usage = self._wish, None
        if self.end is not None:
            tokens_in, tokens_out = self.end.tokens_in or 0, self.end.tokens_out
            usage = ResponseUsage(input_tokens=tokens_in, output_tokens=tokens_out, total_tokens=tokens_in + tokens_out)
        return ResponseObject(
            id=f"resp_{self._task}",
            created_at=self._created,
            status=status,
            incomplete_details=Incomplete() if status == "incomplete" else None,
            instructions=wish.instructions,
            max_output_tokens=wish.max_output_tokens,
            model=wish.model,
            output=output,
            parallel_tool_calls=wish.parallel_tool_calls is not False,
            temperature=wish.temperature,
            text=wish.text,
            tool_choice=wish.tool_choice or "auto",
            tools=wish.tools or (),
            top_logprobs=wish.top_logprobs or 0,
            top_p=wish.top_p,
            usage=usage,
        )

    def _ended(self) -> ResponseObject:
        """Only the last item can be cut off."""
        status = self._status
        last = len(self._items) - 1
        made = [item.made(status if at == last else "completed") for at, item in enumerate(self._items)]
        return self._response(status, tuple(made))


class Events(Answer, CompletionEvents):
    HEARTBEAT = HEARTBEAT

    def __init__(self, asked: AskedResponse, *, created: int) -> None:
        super().__init__(asked, created=created)
        self._number = 0

    def _event(self, kind: str, **fields: Any) -> bytes:
        said = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), _encode(said))

    def _greet(self, out: list[bytes]) -> None:
        response = self._response("in_progress")
        out.append(self._event("response.created", response=response))
        out.append(self._event("response.in_progress", response=response))

    def _say(self, text: bytes, out: list[bytes]) -> None:
        before = self._items[-1] if self._items else None
        item, new = self._message()
        at = len(self._items) - 1
        if new:
            self._close(before, at - 1, "completed", out)
            out.append(self._event("response.output_item.added", output_index=at, item=item.made("in_progress")))
            part = OutputText(text="")
            where: dict[str, Any] = {"item_id": item.id, "output_index": at, "content_index": 0}
            out.append(self._event("response.content_part.added", **where, part=part))
        item.texts.append(text[1:-1])
        item.logprobs.extend(self.logprobs)
        logprobs = _encode(_without_bytes(self.logprobs)) if self.logprobs else b"[]"
        out.append(
            b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","sequence_number":%d,'
            b'"item_id":"%b","output_index":%d,"content_index":0,"logprobs":%b,"delta":%b}\n\n'
            % (self._number, item.id.encode(), at, logprobs, text)
        )
        self._number += 1

    def _call(self, delta: ToolCallDelta, out: list[bytes]) -> None:
        before = self._items[-1] if self._items else None
        item, calling, new = self._called(delta)
        at = len(self._items) - 1
        if new:
            self._close(before, at - 1, "completed", out)
            added = OutputCall(id=item.id, status="in_progress", call_id=calling.id, name=calling.name, arguments="")
            out.append(self._event("response.output_item.added", output_index=at, item=added))
        if delta.function.arguments:
            where = {"item_id": item.id, "output_index": at, "delta": delta.function.arguments}
            out.append(self._event("response.function_call_arguments.delta", **where))

    def _close(self, item: _Item | None, at: int, status: str, out: list[bytes]) -> None:
        if item is None:
            return
        if item.calling is None:
            part, logprobs = item.part(), _without_bytes(item.logprobs)
            where: dict[str, Any] = {"item_id": item.id, "output_index": at, "content_index": 0}
            out.append(self._event("response.output_text.done", **where, text=part.text, logprobs=logprobs))
            out.append(self._event("response.content_part.done", **where, part=part))
        else:
            call = item.calling.made().function
            named = {"item_id": item.id, "output_index": at, "name": call.name, "arguments": call.arguments}
            out.append(self._event("response.function_call_arguments.done", **named))
        out.append(self._event("response.output_item.done", output_index=at, item=item.made(status)))

    def _finish(self, out: list[bytes]) -> None:
        self._close(self._items[-1] if self._items else None, len(self._items) - 1, self._status, out)
        response = self._ended()
        out.append(self._event(f"response.{response.status}", response=response))

    def _failed(self, error: ErrorBody) -> bytes:
        return self._event("error", code=error.code, message=error.message, param=None)


class Whole(Answer):
    """`body` is the response once it is over without an error."""

    def feed(self, data: bytes) -> None:
        text, _ = self.take(data)
        if text or self.logprobs:
            item, _ = self._message()
            item.texts.append(text[1:-1])
            item.logprobs.extend(self.logprobs)
        for delta in self.calls:
            self._called(delta)

    def body(self) -> bytes:
        return _encode(self._ended())

    def _restarted(self, texts: list[bytes]) -> None:
        """What came before is void."""
        self._items.clear()
        texts.clear()


def _without_bytes(tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """As events tell them."""
    return [{**_weight(each), "top_logprobs": [_weight(top) for top in each.top_logprobs]} for each in tokens]


def _weight(said: Logprob) -> dict[str, Any]:
    return {"token": said.token, "logprob": said.logprob}


def _with_bytes(said: TokenLogprob) -> dict[str, Any]:
    """As a part of a message has them. A token whose bytes the engine does not tell has those of its text."""
    tops = [{**_weight(top), "bytes": _bytes(top)} for top in said.top_logprobs]
    return {**_weight(said), "bytes": _bytes(said), "top_logprobs": tops}


def _bytes(said: Logprob) -> Sequence[int]:
    return list(said.token.encode()) if said.bytes is None else said.bytes
