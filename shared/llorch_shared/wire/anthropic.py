"""The Messages API of Anthropic as its clients see it.

As on the OpenAI routes, what changes the answer is obeyed or refused, what changes nothing here is taken and passed
over (fields of type Any), and a field in neither list is refused.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from llorch_shared.errors import ErrorCode, PolicyLabel
from llorch_shared.wire.openai import Extensions
from llorch_shared.wire.task import MESSAGES_MAX, TOOL_NAME_PATTERN, TOOLS_MAX


class TextBlock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="text"):
    text: str
    cache_control: Any = None
    citations: Any = None


class ToolUseBlock(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="tool_use"
):
    """A call that the assistant made."""

    id: str
    name: str
    input: dict[str, Any]
    cache_control: Any = None
    caller: Any = None


class ToolResultBlock(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="tool_result"
):
    """What a tool answered."""

    tool_use_id: str
    content: str | tuple[TextBlock, ...] = ""
    is_error: bool | None = None
    cache_control: Any = None


class MessageTurn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    role: Literal["user", "assistant"]
    content: str | tuple[TextBlock | ToolUseBlock | ToolResultBlock, ...]


class MessageTool(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A function of the client. Tools that Anthropic runs itself are not served."""

    name: Annotated[str, Meta(pattern=TOOL_NAME_PATTERN)]
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] | None = None
    cache_control: Any = None
    strict: Any = None


class MessageToolChoice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    """With type `tool`."""
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    type: Literal["disabled"]


class OutputFormat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    type: Literal["json_schema"]
    schema: dict[str, Any]
    """The engine cannot leave it."""


class OutputConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    format: OutputFormat | None = None


class MessagesRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """POST /v1/messages."""

    model: Annotated[str, Meta(min_length=1, max_length=512)]
    """A pool's model reference, or a pool's id."""
    messages: Annotated[tuple[MessageTurn, ...], Meta(min_length=1, max_length=MESSAGES_MAX)]
    max_tokens: Annotated[int, Meta(ge=1)]
    system: str | tuple[TextBlock, ...] | None = None
    stop_sequences: tuple[str, ...] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    tools: Annotated[tuple[MessageTool, ...], Meta(max_length=TOOLS_MAX)] | None = None
    tool_choice: MessageToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    llorch: Extensions | None = None
    """As on the OpenAI routes; their headers are taken here, too."""
    cache_control: Any = None
    diagnostics: Any = None
    inference_geo: Any = None
    metadata: Any = None
    service_tier: Any = None
    speed: Any = None
    user_profile_id: Any = None
    workspace_id: Any = None


class MessageText(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="text"):
    text: str


class MessageToolUse(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]


class MessageUsage(msgspec.Struct, frozen=True, kw_only=True):
    """The engine's own counts."""

    input_tokens: int
    output_tokens: int


StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class Message(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    """`msg_` and the task's id."""
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: tuple[MessageText | MessageToolUse, ...]
    stop_reason: StopReason | None
    stop_sequence: str | None
    """The one that ended the text."""
    usage: MessageUsage


class AnthropicError(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    type: str
    message: str
    code: ErrorCode
    """This system's own code, as the fields below."""
    retriable: bool = False
    retry_after_ms: int | None = None
    policy_label: PolicyLabel | None = None
    pool_id: str | None = None
    hint: str | None = None
    detail: str | None = None


class AnthropicErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """An error in Anthropic's shape, and the data of the event `error` that ends a broken stream."""

    type: Literal["error"] = "error"
    error: AnthropicError
    request_id: str
