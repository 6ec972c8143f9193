"""The OpenAI-compatible interface as its clients see it: bodies of the requests, and what is told beside them.

Every parameter of OpenAI's interface that changes the answer is either obeyed or refused by name; those that change
nothing here are taken and passed over. A field that is in neither list is refused, too. Fields of type Any are never
looked into.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from llorch_shared.errors import ErrorCode, PolicyLabel
from llorch_shared.wire.task import (
    MESSAGES_MAX,
    TOOL_NAME_PATTERN,
    TOOLS_MAX,
    TOP_LOGPROBS_MAX,
    Priority,
    TaskId,
    ToolCall,
    Workload,
)


class OpenAiFailover(StrEnum):
    """What becomes of an answer whose engine is lost. There is no `restart`: such a client cannot take back text."""

    RESUME = "resume"
    FAIL = "fail"


class Extensions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What this system can be told beyond OpenAI's interface: in the body as `llorch`, or as headers, which win."""

    priority: Priority | None = None
    """Header `X-Llorch-Priority`. Absent: interactive."""
    deadline_ms: Annotated[int, Meta(ge=1, le=2**53)] | None = None
    """Header `X-Llorch-Deadline-Ms`, from admission to the last token. Absent: 600 s, their clients' patience."""
    session: TaskId | None = None
    """Header `X-Llorch-Session`. Absent: a session of its own."""
    failover: OpenAiFailover | None = None
    """Header `X-Llorch-Failover`. Absent: resume."""
    task_id: TaskId | None = None
    """Header `X-Llorch-Task-Id`. The same id again is the same task and gives the same answer. Absent: a new one."""


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    include_usage: bool | None = None
    include_obfuscation: Any = None


class ResponseFormatKind(StrEnum):
    TEXT = "text"
    JSON_OBJECT = "json_object"
    JSON_SCHEMA = "json_schema"


class JsonSchemaFormat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    name: str
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    """The engine cannot leave the schema, whatever this says."""


class ResponseFormat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    type: ResponseFormatKind
    json_schema: JsonSchemaFormat | None = None


class ContentPart(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A part of a message; only those of type `text` are taken."""

    type: str
    text: str = ""


class ChatTurn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    """A developer is to templates a system."""
    content: str | tuple[ContentPart, ...] | None = None
    name: Any = None
    refusal: Any = None
    annotations: Any = None
    audio: Any = None
    function_call: Any = None
    tool_calls: Annotated[tuple[ToolCall, ...], Meta(max_length=TOOLS_MAX)] | None = None
    tool_call_id: str | None = None


class OfferedFunction(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    name: Annotated[str, Meta(pattern=TOOL_NAME_PATTERN)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    """The engine cannot leave the schema within a call, whatever this says."""


class OfferedTool(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    type: Literal["function"]
    function: OfferedFunction


class NamedFunction(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str


class NamedTool(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="function"
):
    function: NamedFunction


class AllowedTools(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    mode: Literal["auto", "required"]
    tools: Annotated[tuple[NamedTool, ...], Meta(min_length=1, max_length=TOOLS_MAX)]


class AllowedToolChoice(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="allowed_tools"
):
    """Only these of the tools are offered to the model."""

    allowed_tools: AllowedTools


class Wish(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What both kinds of completion have in common."""

    model: Annotated[str, Meta(min_length=1, max_length=512)]
    """A pool's model reference, or a pool's id."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    stop: str | tuple[str, ...] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    """With temperature 0 it makes the task strict: the same text again, even after a failover."""
    llorch: Extensions | None = None
    n: Any = None
    logit_bias: Any = None
    metadata: Any = None
    service_tier: Any = None
    store: Any = None
    user: Any = None


class ChatCompletionRequest(Wish, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """POST /v1/chat/completions."""

    messages: Annotated[tuple[ChatTurn, ...], Meta(min_length=1, max_length=MESSAGES_MAX)]
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    """Wins over `max_tokens`. Without either an answer may fill the context."""
    response_format: ResponseFormat | None = None
    audio: Any = None
    function_call: Any = None
    functions: Any = None
    modalities: Any = None
    moderation: Any = None
    parallel_tool_calls: bool | None = None
    prediction: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    reasoning_effort: Any = None
    safety_identifier: Any = None
    tools: Annotated[tuple[OfferedTool, ...], Meta(max_length=TOOLS_MAX)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | AllowedToolChoice | None = None
    logprobs: bool | None = None
    """Of the tokens of the text; those of a call have none."""
    top_logprobs: Annotated[int, Meta(ge=0, le=TOP_LOGPROBS_MAX)] | None = None
    verbosity: Any = None
    web_search_options: Any = None


class TextCompletionRequest(Wish, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """POST /v1/completions. Without `max_tokens` 16 are generated, as OpenAI does."""

    prompt: str | tuple[str, ...]
    """One prompt."""
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    best_of: Any = None
    echo: Any = None
    suffix: Any = None


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """The engine's own counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


FinishReason = Literal["stop", "length", "tool_calls"]


class ChatAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    tool_calls: tuple[ToolCall, ...] = ()


class ChatChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: int = 0
    message: ChatAnswer
    logprobs: Any = None
    finish_reason: FinishReason


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    """`chatcmpl-` and the task's id."""
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: tuple[ChatChoice, ...]
    usage: Usage


class TextChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: int = 0
    text: str
    logprobs: Any = None
    finish_reason: FinishReason


class TextCompletion(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    """`cmpl-` and the task's id."""
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: tuple[TextChoice, ...]
    usage: Usage


class Model(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    """The reference by which pools name the model."""
    object: Literal["model"] = "model"
    created: int = 0
    """Not known; clients expect the field."""
    owned_by: str = "llama-orch"
    pools: tuple[str, ...]
    """Each of them is a name of this model, too, and pins the task to that pool."""
    ctx_max: int
    workloads: tuple[Workload, ...]
    """What its pools serve: `completion`, `embedding`, `rerank`."""
    ready: bool


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: tuple[Model, ...]


class OpenAiError(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An error in OpenAI's shape."""

    message: str
    type: str
    param: str | None
    """The parameter that is wrong, where it is one."""
    code: ErrorCode
    retriable: bool = False
    retry_after_ms: int | None = None
    policy_label: PolicyLabel | None = None
    pool_id: str | None = None
    hint: str | None = None
    detail: str | None = None


class OpenAiErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """The body of an error of the OpenAI-compatible interface, and the data of the event that ends a broken stream."""

    error: OpenAiError
