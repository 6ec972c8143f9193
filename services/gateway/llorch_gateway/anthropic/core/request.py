"""A request of an Anthropic client as what OpenAI's clients would ask, from where it takes their path to a task.

A message of blocks becomes the turns that chat templates know: what tools answered in turns of their own, before the
text beside them. Several texts of one message are its lines.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from llorch_gateway.openai.core.errors import ParamError, unreadable
from llorch_gateway.openai.core.models import Pools
from llorch_gateway.openai.core.request import Asked, as_asked
from llorch_shared.readable import UNREADABLE
from llorch_shared.routing import Replicas
from llorch_shared.wire.anthropic import (
    MessagesRequest,
    MessageTurn,
    OutputConfig,
    TextBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from llorch_shared.wire.openai import (
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
from llorch_shared.wire.task import CalledFunction, ToolCall

_DECODER: Final = msgspec.json.Decoder(MessagesRequest)
_CHOICES: Final = {"auto": "auto", "any": "required", "none": "none"}


def read(body: bytes, headers: Mapping[bytes, bytes], *, new_id: str, pools: Pools, replicas: Replicas) -> Asked:
    """`new_id` is the task's where the client names none. Raises ParamError."""
    try:
        wish = _DECODER.decode(body)
    except UNREADABLE as error:
        raise unreadable(error) from error
    system = () if wish.system is None else (ChatTurn(role="system", content=_text(wish.system)),)
    turns = [turn for number, message in enumerate(wish.messages) for turn in _turns(number, message)]
    asked = ChatCompletionRequest(
        model=wish.model,
        messages=(*system, *turns),
        max_tokens=wish.max_tokens,
        stream=wish.stream,
        stop=wish.stop_sequences,
        temperature=wish.temperature,
        top_p=wish.top_p,
        top_k=wish.top_k,
        llorch=wish.llorch,
        response_format=_format(wish.output_config),
        **_tools(wish),
    )
    return as_asked(asked, headers, new_id=new_id, pools=pools, replicas=replicas)


def _format(wanted: OutputConfig | None) -> ResponseFormat | None:
    if wanted is None or wanted.format is None:
        return None
    schema = JsonSchemaFormat(name="output", schema=wanted.format.schema)
    return ResponseFormat(type=ResponseFormatKind.JSON_SCHEMA, json_schema=schema)


def _turns(number: int, message: MessageTurn) -> Iterator[ChatTurn]:
    if isinstance(message.content, str):
        yield ChatTurn(role=message.role, content=message.content)
        return
    said: list[TextBlock] = []
    calls: list[ToolCall] = []
    for at, block in enumerate(message.content):
        if isinstance(block, TextBlock):
            said.append(block)
            continue
        where = f"messages[{number}].content[{at}]"
        if isinstance(block, ToolUseBlock):
            if message.role != "assistant":
                raise ParamError(where, f"{where}: only an assistant uses tools")
            arguments = msgspec.json.encode(block.input).decode()
            calls.append(ToolCall(id=block.id, function=CalledFunction(name=block.name, arguments=arguments)))
        else:
            yield _result(where, message, block)
    if said or calls:
        yield ChatTurn(role=message.role, content=_text(said), tool_calls=tuple(calls) or None)
    elif not message.content:
        raise ParamError(f"messages[{number}].content", f"messages[{number}]: a message needs content")


def _result(where: str, message: MessageTurn, block: ToolResultBlock) -> ChatTurn:
    if message.role != "user":
        raise ParamError(where, f"{where}: results of tools are told by the user")
    return ChatTurn(role="tool", content=_text(block.content), tool_call_id=block.tool_use_id)


def _text(content: str | Sequence[TextBlock]) -> str:
    return content if isinstance(content, str) else "\n".join(block.text for block in content)


def _tools(wish: MessagesRequest) -> dict[str, Any]:
    choice = wish.tool_choice
    said: dict[str, Any] = {
        "tools": tuple(
            OfferedTool(
                type="function",
                function=OfferedFunction(name=tool.name, description=tool.description, parameters=tool.input_schema),
            )
            for tool in wish.tools or ()
        )
    }
    if choice is None:
        return said
    if (choice.type == "tool") != (choice.name is not None):
        raise ParamError("tool_choice", "tool_choice: a name goes with the type tool, and the type with it")
    if choice.name is not None:
        said["tool_choice"] = NamedTool(function=NamedFunction(name=choice.name))
    else:
        said["tool_choice"] = _CHOICES[choice.type]
    if choice.disable_parallel_tool_use is not None:
        said["parallel_tool_calls"] = not choice.disable_parallel_tool_use
    return said
