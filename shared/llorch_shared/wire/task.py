"""A task as its client sees it: the request, the answer to its admission, and its state when looked up."""

from enum import StrEnum
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from llorch_shared.identifiers import NAME_PATTERN, UUID_PATTERN
from llorch_shared.wire.objects import OBJECT_BYTES_MAX, ObjectRef

TaskId = Annotated[str, Meta(pattern=UUID_PATTERN, description="UUID; compared in lower case")]
Name = Annotated[str, Meta(pattern=NAME_PATTERN)]

CTX_MAX: Final = 32_768
MAX_TOKENS_MAX: Final = 50_000
INLINE_BYTES_MAX: Final = 768 * 1024
"""Of a request as JSON: larger ones travel by reference. It is in one bus message of at most 1 MiB, with the run record
and headers around it."""
PROMPT_BYTES_MAX: Final = OBJECT_BYTES_MAX
MESSAGES_MAX: Final = 1_024
INPUTS_MAX: Final = 2_048
"""Of one embedding or rerank task: as many as OpenAI takes."""
TOOL_NAME_PATTERN: Final = r"^[a-zA-Z0-9_-]{1,64}$(?!\n)"
STOPS_MAX: Final = 16
STOP_CHARS_MAX: Final = 256
SCHEMA_BYTES_MAX: Final = 64 * 1024
"""Of a response schema, or of all tools, as JSON: engines turn it into a grammar, whose size grows with it."""
TOOLS_MAX: Final = 128
TOP_LOGPROBS_MAX: Final = 20


class Workload(StrEnum):
    COMPLETION = "completion"
    EMBEDDING = "embedding"
    RERANK = "rerank"


class Engine(StrEnum):
    """Engines a task may ask for (ORCH-2008; `openai`, `sglang` and `mock` extend the first four, DESIGN C29)."""

    LLAMACPP = "llamacpp"
    VLLM = "vllm"
    TGI = "tgi"
    TRITON = "triton"
    OPENAI = "openai"
    SGLANG = "sglang"
    MOCK = "mock"


class Priority(StrEnum):
    INTERACTIVE = "interactive"
    BATCH = "batch"


class Determinism(StrEnum):
    STRICT = "strict"
    BEST_EFFORT = "best_effort"


class Failover(StrEnum):
    """What becomes of a stream whose engine or node is lost after tokens of it were sent. With none sent, and where the
    task is strict, it is run again: the tokens that were sent are compared and not sent again."""

    RESUME = "resume"
    """Go on from the prompt and the text so far with the next index. Refused where the output is bound to a schema
    (`output_mode` other than text): half of it by one run and half by another need not be valid."""
    RESTART = "restart"
    """Begin the output anew. Indices go on; `restarted_at` says before which index everything is void."""
    FAIL = "fail"
    """End with WORKER_RESET."""


class KvHint(StrEnum):
    REUSE = "reuse"
    COLD = "cold"


class OutputMode(StrEnum):
    TEXT = "text"
    JSON = "json"
    EDITS = "edits"


class ChatRole(StrEnum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"
    """What a tool answered. Since version 4, as everything about tools."""


class ToolChoice(StrEnum):
    AUTO = "auto"
    """The model decides whether it calls one."""
    REQUIRED = "required"
    """The engine does not let the output end before a call."""


class PlacementMode(StrEnum):
    AUTO = "auto"
    PIN = "pin"
    PREFER = "prefer"


class PlacementOverrides(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the client wants the task to run (ORCH-3907)."""

    mode: PlacementMode = PlacementMode.AUTO
    pin_pool_id: Name | None = None
    prefer_pools: tuple[Name, ...] = ()
    avoid_pools: tuple[Name, ...] = ()
    require_device_mask: str | None = None
    allow_fallback: bool = True
    label: Name | None = None
    """Compared with the labels of a pool's canary (ORCH-3033)."""


class CalledFunction(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    arguments: str
    """JSON, as the model wrote it."""


class ToolCall(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A call that an assistant made in an earlier turn."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class Tool(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A function that the model may call; calling it is the client's work."""

    name: Annotated[str, Meta(pattern=TOOL_NAME_PATTERN)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """JSON Schema of its arguments."""


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """One turn of a conversation. The node renders it by the chat template of the engine's model."""

    role: ChatRole
    content: str
    tool_calls: Annotated[tuple[ToolCall, ...], Meta(max_length=TOOLS_MAX)] = ()
    """Of an assistant."""
    tool_call_id: str | None = None
    """The call that a tool's message answers."""


class Sampling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How tokens are chosen. What is absent is the sampler profile's."""

    temperature: Annotated[float, Meta(ge=0, le=2, description="0 always takes the likeliest token")] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=1_000_000, description="0 takes all")] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    stop: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=STOP_CHARS_MAX)], ...], Meta(max_length=STOPS_MAX)
    ] = ()
    """The text ends before the first of these; none of it is sent."""


class Payload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """What a request with `payload_ref` refers to, as JSON in the object store: what it would hold of these."""

    prompt: str | None = None
    messages: Annotated[tuple[ChatMessage, ...], Meta(min_length=1, max_length=MESSAGES_MAX)] | None = None
    inputs: tuple[str, ...] | None = None


class TaskRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """One unit of inference (FR-DP-001). The body of POST /v1/tasks and the payload of an admission message."""

    task_id: TaskId
    session_id: TaskId
    workload: Workload
    model_ref: Annotated[str, Meta(min_length=1, max_length=512)]
    engine: Engine
    ctx: Annotated[int, Meta(ge=1, le=CTX_MAX, description="context length in tokens")]
    priority: Priority
    max_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS_MAX)]
    """Of an embedding or rerank task at least its inputs: each result counts as one token."""
    deadline_ms: Annotated[
        int, Meta(ge=-(2**53), le=2**53, description="budget from admission to the last token, milliseconds")
    ]
    seed: Annotated[int, Meta(ge=0, le=2**32 - 2)] | None = None
    determinism: Determinism = Determinism.STRICT
    sampler_profile_version: Name = "v1"
    prompt: str | None = None
    """Of a rerank task the query."""
    inputs: tuple[str, ...] | None = None
    """Texts to embed, or documents to be ranked for the prompt. Their results are token events in their order: `i` is
    the input's index, `t` the JSON text of its result."""
    expected_tokens: Annotated[int, Meta(ge=0, le=MAX_TOKENS_MAX)] | None = None
    kv_hint: KvHint | None = None
    placement: PlacementOverrides | None = None
    output_mode: OutputMode = OutputMode.TEXT
    failover: Failover = Failover.RESUME
    """Since version 2 of the messages that carry a request (`wire.version`)."""
    messages: Annotated[tuple[ChatMessage, ...], Meta(min_length=1, max_length=MESSAGES_MAX)] | None = None
    """A conversation instead of a prompt. Since version 3, as the fields below."""
    sampling: Sampling | None = None
    response_schema: dict[str, Any] | None = None
    """JSON Schema of the output, which the engine cannot leave; with `output_mode` json."""
    payload_ref: ObjectRef | None = None
    """Where a Payload lies, instead of prompt, messages or inputs: for what is too large for one bus message. The
    gateway refers by itself; bus clients put the object first. Since version 4, as the fields below."""
    trace: bool = False
    """Keep the transcript of the stream as an artifact of kind `trace` with the tag `task:<task_id>`."""
    tools: Annotated[tuple[Tool, ...], Meta(max_length=TOOLS_MAX)] = ()
    """With messages. Calls come in the field `tool_calls` of tokens; such output never goes on from its half."""
    tool_choice: ToolChoice = ToolChoice.AUTO
    parallel_tool_calls: bool | None = None
    """Whether the model may call several at once. Absent: as its template does."""
    top_logprobs: Annotated[int, Meta(ge=0, le=TOP_LOGPROBS_MAX)] | None = None
    """Tokens carry their log-probability, and those of so many likeliest tokens in their place."""
    override: bool = False
    """Take it although its model is Deprecated. For those who operate the system. Since version 5."""


class TaskState(StrEnum):
    """States of a task; the moves between them stand in `llorch_shared.states`."""

    QUEUED = "queued"
    PLACED = "placed"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    DROPPED = "dropped"


class TaskAccepted(msgspec.Struct, frozen=True, kw_only=True):
    """The task is in a durable queue (202, OC-CTRL-2050)."""

    task_id: TaskId
    queue_position: Annotated[int, Meta(ge=0)]
    """Tasks that will start before this one."""
    predicted_start_ms: Annotated[int, Meta(ge=0)]
    """Milliseconds from now until this task is expected to start."""
    backoff_ms: Annotated[int, Meta(ge=0)] = 0
    correlation_id: str
    tokens_budget_remaining: int | msgspec.UnsetType = msgspec.UNSET
    """Of its session where that has a budget, after what is reserved for this task. So are the next two."""
    time_budget_remaining_ms: int | msgspec.UnsetType = msgspec.UNSET
    cost_budget_remaining: float | msgspec.UnsetType = msgspec.UNSET


class TaskRef(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    task_id: TaskId


class Empty(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request without arguments; an empty payload means the same."""


REQUEST_DECODER: Final = msgspec.json.Decoder(TaskRequest)
PAYLOAD_DECODER: Final = msgspec.json.Decoder(Payload)
REF_DECODER: Final = msgspec.json.Decoder(TaskRef)
