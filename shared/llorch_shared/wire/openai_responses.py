"""The Responses API of OpenAI as its clients see it. Nothing is stored: a response is the answer of one task.

As on the other routes, what changes the answer is obeyed or refused by name, what changes nothing here is taken and
passed over (fields of type Any), and a field in neither list is refused.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from llorch_shared.wire.openai import Extensions
from llorch_shared.wire.task import MESSAGES_MAX, TOOL_NAME_PATTERN, TOOLS_MAX


class InputPart(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A part of a message; only those of type `input_text` and `output_text` are taken."""

    type: str
    text: str = ""


class InputItem(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A message, a call that the model made (`function_call`), or what a tool answered (`function_call_output`)."""

    type: Literal["message", "function_call", "function_call_output"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | tuple[InputPart, ...] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | tuple[InputPart, ...] | None = None
    id: Any = None
    status: Any = None
    phase: Any = None


class TextFormat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema: dict[str, Any] | None = None
    description: Any = None
    strict: Any = None
    """The engine cannot leave the schema, whatever this says."""


class TextSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    format: TextFormat | None = None
    verbosity: Any = None


class FunctionTool(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    type: Literal["function"]
    name: Annotated[str, Meta(pattern=TOOL_NAME_PATTERN)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Any = None


class FunctionChoice(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="function"
):
    name: str


class AllowedChoice(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="allowed_tools"
):
    """Only these of the tools are offered to the model."""

    mode: Literal["auto", "required"]
    tools: Annotated[tuple[FunctionChoice, ...], Meta(min_length=1, max_length=TOOLS_MAX)]


class ResponsesRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """POST /v1/responses."""

    model: Annotated[str, Meta(min_length=1, max_length=512)]
    """A pool's model reference, or a pool's id."""
    input: str | Annotated[tuple[InputItem, ...], Meta(min_length=1, max_length=MESSAGES_MAX)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Meta(ge=1)] | None = None
    """Absent: the answer may fill the context."""
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    stream: bool | None = None
    text: TextSettings | None = None
    tools: Annotated[tuple[FunctionTool, ...], Meta(max_length=TOOLS_MAX)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | AllowedChoice | None = None
    parallel_tool_calls: bool | None = None
    llorch: Extensions | None = None
    background: Any = None
    conversation: Any = None
    include: tuple[str, ...] | None = None
    """`message.output_text.logprobs` is served."""
    max_tool_calls: Any = None
    metadata: Any = None
    previous_response_id: Any = None
    prompt: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    reasoning: Any = None
    safety_identifier: Any = None
    service_tier: Any = None
    store: Any = None
    """Taken and passed over: nothing is ever stored."""
    stream_options: Any = None
    top_logprobs: int | None = None
    """0 to 20. Goes with `include: ["message.output_text.logprobs"]`."""
    truncation: Any = None
    user: Any = None


class OutputText(msgspec.Struct, frozen=True, kw_only=True):
    type: Literal["output_text"] = "output_text"
    text: str
    annotations: tuple[Any, ...] = ()
    logprobs: tuple[Any, ...] = ()


class OutputMessage(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="message"):
    id: str
    status: Literal["in_progress", "completed", "incomplete"]
    role: Literal["assistant"] = "assistant"
    content: tuple[OutputText, ...]


class OutputCall(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="function_call"):
    id: str
    status: Literal["in_progress", "completed", "incomplete"]
    call_id: str
    name: str
    arguments: str


class InputTokens(msgspec.Struct, frozen=True, kw_only=True):
    cached_tokens: int = 0


class OutputTokens(msgspec.Struct, frozen=True, kw_only=True):
    reasoning_tokens: int = 0


class ResponseUsage(msgspec.Struct, frozen=True, kw_only=True):
    """The engine's own counts."""

    input_tokens: int
    input_tokens_details: InputTokens = InputTokens()
    output_tokens: int
    output_tokens_details: OutputTokens = OutputTokens()
    total_tokens: int


class Incomplete(msgspec.Struct, frozen=True, kw_only=True):
    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseObject(msgspec.Struct, frozen=True, kw_only=True):
    """The answer, and what of it stands when a stream begins."""

    id: str
    """`resp_` and the task's id."""
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: Any = None
    incomplete_details: Incomplete | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    model: str
    output: tuple[OutputMessage | OutputCall, ...] = ()
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    store: bool = False
    temperature: float | None = None
    text: TextSettings | None = None
    tool_choice: Any = "auto"
    tools: tuple[FunctionTool, ...] = ()
    top_logprobs: int = 0
    top_p: float | None = None
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    metadata: dict[str, str] = {}
