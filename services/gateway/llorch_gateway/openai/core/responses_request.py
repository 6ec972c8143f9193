"""A request of the Responses API as the chat that it is.

Nothing is kept of a response, so a request that refers to an earlier one is refused: its client sends the conversation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from llorch_gateway.openai.core.errors import ParamError, unreadable
from llorch_gateway.openai.core.models import Pools
from llorch_gateway.openai.core.request import Asked, as_asked
from llorch_shared.readable import UNREADABLE
from llorch_shared.routing import Replicas
from llorch_shared.wire.openai import (
    AllowedToolChoice,
    AllowedTools,
    ChatCompletionRequest,
    ChatTurn,
    JsonSchemaFormat,
    NamedFunction,
    NamedTool,
    OfferedFunction,
    OfferedTool,
    ResponseFormat,
    ResponseFormatKind,
)
from llorch_shared.wire.openai_responses import (
    AllowedChoice,
    FunctionChoice,
    InputItem,
    InputPart,
    ResponsesRequest,
    TextFormat,
)
from llorch_shared.wire.task import TOP_LOGPROBS_MAX, CalledFunction, ToolCall

_ONLY: Final[Mapping[str, tuple[Any, ...]]] = {
    "background": (False,),
    "conversation": (),
    "max_tool_calls": (),
    "previous_response_id": (),
    "prompt": (),
    "reasoning": ({},),
    "truncation": ("disabled",),
}
"""The values that parameters may have which are not served: those that ask for nothing. Null is one of every list."""
_HINTS: Final = {"previous_response_id": "responses are not stored; send the whole conversation as input"}
_LOGPROBS: Final = "message.output_text.logprobs"
_PARTS: Final = ("input_text", "output_text", "text")
_DECODER: Final = msgspec.json.Decoder(ResponsesRequest)


@dataclass(frozen=True, slots=True)
class AskedResponse:
    asked: Asked
    wish: ResponsesRequest


def read(
    body: bytes, headers: Mapping[bytes, bytes], *, new_id: str, pools: Pools, replicas: Replicas
) -> AskedResponse:
    """`new_id` is the task's where the client names none. Raises ParamError."""
    try:
        wish = _DECODER.decode(body)
    except UNREADABLE as error:
        raise unreadable(error) from error
    for name, harmless in _ONLY.items():
        value = getattr(wish, name)
        if value is not None and not any(value == each and type(value) is type(each) for each in harmless):
            raise ParamError(name, f"{name} is not served here", hint=_HINTS.get(name))
    weighs = _weighs(wish)
    chat = ChatCompletionRequest(
        model=wish.model,
        messages=tuple(_turns(wish)),
        max_completion_tokens=wish.max_output_tokens,
        temperature=wish.temperature,
        top_p=wish.top_p,
        stream=wish.stream,
        llorch=wish.llorch,
        tools=tuple(
            OfferedTool(
                type="function",
                function=OfferedFunction(name=tool.name, description=tool.description, parameters=tool.parameters),
            )
            for tool in wish.tools or ()
        ),
        tool_choice=_choice(wish),
        parallel_tool_calls=wish.parallel_tool_calls,
        logprobs=weighs,
        top_logprobs=wish.top_logprobs if weighs else None,
        response_format=None if wish.text is None or wish.text.format is None else _format(wish.text.format),
    )
    return AskedResponse(as_asked(chat, headers, new_id=new_id, pools=pools, replicas=replicas), wish)


def _turns(wish: ResponsesRequest) -> list[ChatTurn]:
    """Calls that follow one another, or a message of the assistant, are one turn of it."""
    turns = [] if wish.instructions is None else [ChatTurn(role="system", content=wish.instructions)]
    if isinstance(wish.input, str):
        return [*turns, ChatTurn(role="user", content=wish.input)]
    for number, item in enumerate(wish.input):
        where = f"input[{number}]"
        if item.type == "function_call":
            call = _call(where, item)
            if turns and turns[-1].role == "assistant":
                turns[-1] = msgspec.structs.replace(turns[-1], tool_calls=(*(turns[-1].tool_calls or ()), call))
            else:
                turns.append(ChatTurn(role="assistant", tool_calls=(call,)))
        elif item.type == "function_call_output":
            if item.call_id is None or item.output is None:
                raise ParamError(where, f"{where}: what a tool answered needs call_id and output")
            output = _text(f"{where}.output", item.output)
            turns.append(ChatTurn(role="tool", content=output, tool_call_id=item.call_id))
        else:
            if item.role is None or item.content is None:
                raise ParamError(where, f"{where}: a message needs role and content")
            turns.append(ChatTurn(role=item.role, content=_text(f"{where}.content", item.content)))
    return turns


def _call(where: str, item: InputItem) -> ToolCall:
    if item.call_id is None or item.name is None or item.arguments is None:
        raise ParamError(where, f"{where}: a call needs call_id, name and arguments")
    return ToolCall(id=item.call_id, function=CalledFunction(name=item.name, arguments=item.arguments))


def _text(where: str, content: str | Sequence[InputPart]) -> str:
    if isinstance(content, str):
        return content
    for at, part in enumerate(content):
        if part.type not in _PARTS:
            raise ParamError(f"{where}[{at}].type", f"{part.type[:40]!r} is not served here, only text is")
    return "".join(part.text for part in content)


def _choice(wish: ResponsesRequest) -> Any:
    choice = wish.tool_choice
    if isinstance(choice, FunctionChoice):
        return _named(choice)
    if isinstance(choice, AllowedChoice):
        allowed = AllowedTools(mode=choice.mode, tools=tuple(map(_named, choice.tools)))
        return AllowedToolChoice(allowed_tools=allowed)
    return choice


def _named(choice: FunctionChoice) -> NamedTool:
    return NamedTool(function=NamedFunction(name=choice.name))


def _weighs(wish: ResponsesRequest) -> bool:
    """Whether log-probabilities are asked for. Raises ParamError."""
    for name in wish.include or ():
        if name != _LOGPROBS:
            raise ParamError("include", f"{name[:64]!r} is not served here, only {_LOGPROBS} is")
    if not 0 <= (wish.top_logprobs or 0) <= TOP_LOGPROBS_MAX:
        raise ParamError("top_logprobs", f"top_logprobs is {wish.top_logprobs}; 0 to {TOP_LOGPROBS_MAX} are told")
    if wish.top_logprobs and not wish.include:
        raise ParamError("top_logprobs", f"top_logprobs goes with {_LOGPROBS} in include")
    return bool(wish.include)


def _format(wanted: TextFormat) -> ResponseFormat:
    if wanted.type != "json_schema":
        return ResponseFormat(type=ResponseFormatKind(wanted.type))
    if wanted.schema is None:
        raise ParamError("text.format.schema", "a format of type json_schema needs one")
    schema = JsonSchemaFormat(name=wanted.name or "", schema=wanted.schema)
    return ResponseFormat(type=ResponseFormatKind.JSON_SCHEMA, json_schema=schema)
