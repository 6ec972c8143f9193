"""A request of an OpenAI client as a task, or the refusal that names what cannot be served.

Nothing that changes the answer is passed over in silence: it is obeyed, or refused by its name. What absent parameters
mean is the sampler profile's, not OpenAI's. A task is strict when it has a seed and temperature 0, for only then does
its client expect the same text again; any other is best effort and may start from a warm prefix.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from llorch_gateway.openai.core.errors import ParamError, unreadable
from llorch_gateway.openai.core.models import Pools, chosen
from llorch_shared.guards import prompt_tokens_min
from llorch_shared.readable import UNREADABLE
from llorch_shared.routing import Replicas
from llorch_shared.wire.openai import (
    AllowedToolChoice,
    ChatCompletionRequest,
    ChatTurn,
    ContentPart,
    Extensions,
    NamedTool,
    OfferedTool,
    ResponseFormat,
    ResponseFormatKind,
    TextCompletionRequest,
    Wish,
)
from llorch_shared.wire.task import (
    CTX_MAX,
    MAX_TOKENS_MAX,
    MESSAGES_MAX,
    STOP_CHARS_MAX,
    STOPS_MAX,
    TOOLS_MAX,
    ChatMessage,
    ChatRole,
    Determinism,
    Failover,
    OutputMode,
    Priority,
    Sampling,
    TaskRequest,
    Tool,
    ToolChoice,
    Workload,
)

DEADLINE_MS: Final = 600_000
TEXT_TOKENS: Final = 16
"""Of a text completion that does not say how many it wants, as OpenAI does."""
EXPECTED_TOKENS: Final = 512
"""Of a chat that does not say: it may fill the context, and is not expected to."""
SEEDS: Final = 2**32 - 1
HEADERS: Final[Mapping[bytes, str]] = {
    b"x-llorch-priority": "priority",
    b"x-llorch-deadline-ms": "deadline_ms",
    b"x-llorch-session": "session",
    b"x-llorch-failover": "failover",
    b"x-llorch-task-id": "task_id",
}
_EXTENSION_TYPES: Final = {field.name: field.type for field in msgspec.structs.fields(Extensions)}
_ROLES: Final = {"developer": ChatRole.SYSTEM, **{role.value: role for role in ChatRole}}
_ONLY: Final[Mapping[str, tuple[Any, ...]]] = {
    "n": (1,),
    "logit_bias": ({},),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "audio": (),
    "function_call": ("none",),
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
}
"""The values that parameters may have which are not served: those that ask for nothing. Null is one of every list."""
_ANY_OBJECT: Final[dict[str, Any]] = {"type": "object"}
_CHAT: Final = msgspec.json.Decoder(ChatCompletionRequest)
_TEXT: Final = msgspec.json.Decoder(TextCompletionRequest)


@dataclass(frozen=True, slots=True)
class Asked:
    """`usage`: whether the stream's last chunk is to say what was used."""

    task: TaskRequest
    chat: bool
    model: str
    stream: bool
    usage: bool


def read(
    body: bytes, headers: Mapping[bytes, bytes], *, chat: bool, new_id: str, pools: Pools, replicas: Replicas
) -> Asked:
    """`new_id` is the task's where the client names none. Raises ParamError."""
    try:
        wish: Wish = (_CHAT if chat else _TEXT).decode(body)
    except UNREADABLE as error:
        raise unreadable(error) from error
    return as_asked(wish, headers, new_id=new_id, pools=pools, replicas=replicas)


def as_asked(wish: Wish, headers: Mapping[bytes, bytes], *, new_id: str, pools: Pools, replicas: Replicas) -> Asked:
    """What other interfaces ask is put as such a wish, too. Raises ParamError."""
    _refuse_unserved(wish)
    extensions = extended(wish.llorch, headers)
    pool, placement = chosen(wish.model, pools, replicas)
    task_id = (extensions.task_id or new_id).lower()
    task = TaskRequest(
        task_id=task_id,
        session_id=(extensions.session or task_id).lower(),
        workload=Workload.COMPLETION,
        model_ref=pool.model,
        engine=pool.engine,
        ctx=min(pool.ctx, CTX_MAX),
        priority=extensions.priority or Priority.INTERACTIVE,
        max_tokens=1,
        deadline_ms=extensions.deadline_ms or DEADLINE_MS,
        seed=None if wish.seed is None else wish.seed % SEEDS,
        determinism=Determinism.STRICT if wish.seed is not None and wish.temperature == 0 else Determinism.BEST_EFFORT,
        sampler_profile_version=pool.sampler_profile_version,
        prompt=_prompt(wish),
        messages=_messages(wish),
        sampling=_sampling(wish),
        placement=placement,
        failover=Failover(extensions.failover or Failover.RESUME),
        top_logprobs=_top_logprobs(wish),
        **_output(wish),
        **_tools(wish),
    )
    if task.tools and task.response_schema is not None:
        raise ParamError("tools", "tools do not go with response_format here")
    options = wish.stream_options
    return Asked(
        task=_sized(task, wish),
        chat=isinstance(wish, ChatCompletionRequest),
        model=wish.model,
        stream=bool(wish.stream),
        usage=bool(options is not None and options.include_usage),
    )


def _refuse_unserved(wish: Wish) -> None:
    for name, harmless in _ONLY.items():
        value = getattr(wish, name, None)
        if value is not None and not any(value == each and type(value) is type(each) for each in harmless):
            raise ParamError(name, f"{name} is not served here")
    if wish.stream_options is not None and not wish.stream:
        raise ParamError("stream_options", "stream_options goes with stream")


def extended(said: Extensions | None, headers: Mapping[bytes, bytes]) -> Extensions:
    """What the body and the headers say beyond OpenAI's interface. Raises ParamError."""
    said = said or Extensions()
    changes: dict[str, Any] = {}
    for header, name in HEADERS.items():
        if header in headers:
            kind = _EXTENSION_TYPES[name]
            try:
                changes[name] = msgspec.convert(headers[header].decode("latin-1"), kind, strict=False)
            except msgspec.ValidationError as error:
                raise ParamError(header.decode("ascii"), f"{header.decode('ascii')}: {error}") from error
            if changes[name] is None:
                raise ParamError(header.decode("ascii"), f"{header.decode('ascii')} is empty")
    return msgspec.structs.replace(said, **changes) if changes else said


def _prompt(wish: Wish) -> str | None:
    if not isinstance(wish, TextCompletionRequest):
        return None
    if isinstance(wish.prompt, str):
        return wish.prompt
    if len(wish.prompt) != 1:
        raise ParamError("prompt", f"{len(wish.prompt)} prompts; one is served at a time")
    return wish.prompt[0]


def _messages(wish: Wish) -> tuple[ChatMessage, ...] | None:
    if not isinstance(wish, ChatCompletionRequest):
        return None
    if len(wish.messages) > MESSAGES_MAX:
        raise ParamError("messages", f"{len(wish.messages)} turns; at most {MESSAGES_MAX} are taken")
    return tuple(_message(number, turn) for number, turn in enumerate(wish.messages))


def _message(number: int, turn: ChatTurn) -> ChatMessage:
    where = f"messages[{number}]"
    role = _ROLES[turn.role]
    for name in ("audio", "function_call"):
        if getattr(turn, name) not in (None, []):
            raise ParamError(f"{where}.{name}", f"{name} is not served here")
    calls = turn.tool_calls or ()
    if calls and role is not ChatRole.ASSISTANT:
        raise ParamError(f"{where}.tool_calls", "only an assistant calls tools")
    if len(calls) > TOOLS_MAX:
        raise ParamError(f"{where}.tool_calls", f"{len(calls)} calls in a turn; at most {TOOLS_MAX} are taken")
    if (role is ChatRole.TOOL) != (turn.tool_call_id is not None):
        raise ParamError(f"{where}.tool_call_id", "tool_call_id goes with the role tool, and the role with it")
    if turn.content is None and not calls:
        raise ParamError(f"{where}.content", "a message needs content")
    content = _text_of(f"{where}.content", turn.content or "")
    return ChatMessage(role=role, content=content, tool_calls=calls, tool_call_id=turn.tool_call_id)


def _text_of(where: str, content: str | Sequence[ContentPart]) -> str:
    if isinstance(content, str):
        return content
    for at, part in enumerate(content):
        if part.type != "text":
            raise ParamError(f"{where}[{at}].type", f"{part.type[:40]!r} is not served here, only text is")
    return "".join(part.text for part in content)


def _tools(wish: Wish) -> dict[str, Any]:
    """Only functions that are named are offered, if any are: engines know no other way to say so."""
    if not isinstance(wish, ChatCompletionRequest):
        return {}
    offers, choice = wish.tools or (), wish.tool_choice
    if isinstance(choice, NamedTool):
        offers, choice = _named(offers, [choice]), "required"
    elif isinstance(choice, AllowedToolChoice):
        offers, choice = _named(offers, choice.allowed_tools.tools), choice.allowed_tools.mode
    if not offers and choice == "required":
        raise ParamError("tool_choice", "no tools are given")
    if not offers or choice == "none":
        return {}
    functions = [each.function for each in offers]
    return {
        "tools": tuple(
            Tool(name=each.name, description=each.description, parameters=each.parameters) for each in functions
        ),
        "tool_choice": ToolChoice.AUTO if choice in (None, "auto") else ToolChoice.REQUIRED,
        "parallel_tool_calls": wish.parallel_tool_calls,
    }


def _named(offers: Sequence[OfferedTool], wanted: Sequence[NamedTool]) -> tuple[OfferedTool, ...]:
    """Those of the tools that are named. Raises ParamError."""
    names = {each.function.name for each in wanted}
    for name in sorted(names - {each.function.name for each in offers}):
        raise ParamError("tool_choice", f"no tool has the name {name[:64]!r}")
    return tuple(each for each in offers if each.function.name in names)


def _top_logprobs(wish: Wish) -> int | None:
    if isinstance(wish, TextCompletionRequest):
        return wish.logprobs
    assert isinstance(wish, ChatCompletionRequest)
    if wish.top_logprobs and not wish.logprobs:
        raise ParamError("top_logprobs", "top_logprobs goes with logprobs")
    return wish.top_logprobs or 0 if wish.logprobs else None


def _sampling(wish: Wish) -> Sampling | None:
    stops = (wish.stop,) if isinstance(wish.stop, str) else wish.stop or ()
    if len(stops) > STOPS_MAX or any(not 1 <= len(stop) <= STOP_CHARS_MAX for stop in stops):
        raise ParamError("stop", f"at most {STOPS_MAX} texts of 1 to {STOP_CHARS_MAX} characters")
    sampling = Sampling(
        temperature=wish.temperature,
        top_p=wish.top_p,
        top_k=wish.top_k,
        min_p=wish.min_p,
        frequency_penalty=wish.frequency_penalty,
        presence_penalty=wish.presence_penalty,
        stop=stops,
    )
    return None if sampling == Sampling() else sampling


def _output(wish: Wish) -> dict[str, Any]:
    bound = wish.response_format if isinstance(wish, ChatCompletionRequest) else None
    schema = None if bound is None else _schema(bound)
    return {} if schema is None else {"output_mode": OutputMode.JSON, "response_schema": schema}


def _schema(bound: ResponseFormat) -> dict[str, Any] | None:
    if bound.type is not ResponseFormatKind.JSON_SCHEMA:
        return _ANY_OBJECT if bound.type is ResponseFormatKind.JSON_OBJECT else None
    if bound.json_schema is None:
        raise ParamError("response_format.json_schema", "a response format of type json_schema needs one")
    return bound.json_schema.schema or _ANY_OBJECT


def _sized(task: TaskRequest, wish: Wish) -> TaskRequest:
    """With its number of tokens: what the client says, else OpenAI's default."""
    name, said = "max_tokens", wish.max_tokens
    if isinstance(wish, ChatCompletionRequest) and wish.max_completion_tokens is not None:
        name, said = "max_completion_tokens", wish.max_completion_tokens
    elif isinstance(wish, TextCompletionRequest) and said is None:
        said = TEXT_TOKENS
    if said is None:
        room = max(1, min(MAX_TOKENS_MAX, task.ctx - prompt_tokens_min(task)))
        return msgspec.structs.replace(task, max_tokens=room, expected_tokens=min(room, EXPECTED_TOKENS))
    if said > MAX_TOKENS_MAX:
        raise ParamError(name, f"{name} is {said}; at most {MAX_TOKENS_MAX} are served")
    return msgspec.structs.replace(task, max_tokens=said)
