"""Guards of a request that need nothing but the request and its pool: the gateway applies them before a queue, the
scheduler to what bus clients put there themselves. One set, so that both doors refuse the same.

What only the engine can know (the exact number of prompt tokens) is checked by the node.
"""

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from llorch_shared.errors import ErrorCode, OrchError, invalid
from llorch_shared.url_credentials import REFUSAL, has_credentials
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import (
    INLINE_BYTES_MAX,
    INPUTS_MAX,
    PROMPT_BYTES_MAX,
    SCHEMA_BYTES_MAX,
    ChatMessage,
    ChatRole,
    OutputMode,
    TaskRequest,
    ToolChoice,
    Workload,
)
from llorch_shared.wishes import labelled, permitted

BYTES_PER_TOKEN_MAX: Final = 128
"""The longest tokens of known vocabularies are runs of 128 blanks. A prompt therefore has at least its bytes divided
by this many tokens: what is refused for its length could not have fit with any of them."""
ESCAPED_BYTES_MAX: Final = 6
"""Of JSON for one byte of text."""
NESTING_MAX: Final = 128
"""Of what clients write as they like. Who reads it next has less room on its stack, perhaps, than who took it."""


def check_request(request: TaskRequest) -> None:
    """Everything that can be said of a request alone. Raises OrchError."""
    check_content(request)
    check_budget(request)
    check_deadline(request)


def check_bound(request: TaskRequest) -> None:
    """What nobody may ask for who is bound to a tenant, by whichever door. Raises OrchError."""
    if request.override:
        raise invalid("override: whoever is bound to a tenant does not operate the system", status=403)
    if request.payload_ref is not None:
        # Whose it is cannot be told: another tenant's prompt would be read by who knows its digest.
        raise invalid("payload_ref: whoever is bound to a tenant has to send the content itself", engine=request.engine)


def check_pool(request: TaskRequest, pool: PoolSpec, *, had_model: bool = False) -> None:
    """A request that somebody put into this pool's queue. Raises OrchError. Whether a replica has the device that its
    client requires is not looked at: that takes the registry. `had_model`: the pool had its model when it came; what
    waits while the pool gets another one is served by that."""
    if request.engine is not pool.engine or (request.model_ref != pool.model and not had_model):
        raise invalid(
            f"pool {pool.id} does not serve model {request.model_ref!r} with engine {request.engine}",
            engine=request.engine,
        )
    if request.workload not in pool.serves:
        raise invalid(f"pool {pool.id} does not serve the workload {request.workload}", engine=request.engine)
    if request.ctx > pool.ctx:
        raise invalid(f"ctx {request.ctx} is over the {pool.ctx} of pool {pool.id}", engine=request.engine)
    if request.payload_ref is None and content_bytes(request) > INLINE_BYTES_MAX:
        raise invalid(
            f"{content_bytes(request)} bytes of prompt; more than {INLINE_BYTES_MAX} go by payload_ref",
            status=413,
            engine=request.engine,
        )
    with labelled(request):
        permitted(request, [pool])


def check_content(request: TaskRequest) -> None:
    """What its workload takes, and nothing else, or a reference to it; how its output is bound. What lies behind a
    reference is looked at by who has read it."""
    if has_credentials(request.model_ref):
        raise invalid(f"model_ref: {REFUSAL}", engine=request.engine)
    if nests_deeply(request.response_schema) or any(nests_deeply(tool.parameters) for tool in request.tools):
        raise invalid(f"a schema is nested more than {NESTING_MAX} deep", engine=request.engine)
    if request.workload is Workload.COMPLETION or request.payload_ref is not None:
        _check_one(request)
    else:
        _check_inputs(request)
    size = content_bytes(request)
    if size > PROMPT_BYTES_MAX:
        raise invalid(
            f"{size} bytes of prompt; at most {PROMPT_BYTES_MAX} are taken", status=413, engine=request.engine
        )
    _check_output(request)
    _check_tools(request)


def nests_deeply(value: Any) -> bool:
    """Whether decoded JSON is nested more than `NESTING_MAX` deep."""
    level = [value]
    for _ in range(NESTING_MAX + 1):
        level = [inner for outer in level for inner in _inside(outer) if isinstance(inner, dict | list)]
        if not level:
            return False
    return True


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _check_tools(request: TaskRequest) -> None:
    if request.tools:
        _check_offered(request)
    elif request.tool_choice is not ToolChoice.AUTO or request.parallel_tool_calls is not None:
        raise invalid("tool_choice and parallel_tool_calls go with tools", engine=request.engine)
    for number, message in enumerate(request.messages or ()):
        where = f"messages[{number}]"
        if message.tool_calls and message.role is not ChatRole.ASSISTANT:
            raise invalid(f"{where}: only an assistant calls tools", engine=request.engine)
        if (message.role is ChatRole.TOOL) != (message.tool_call_id is not None):
            raise invalid(f"{where}: tool_call_id goes with the role tool", engine=request.engine)


def _check_offered(request: TaskRequest) -> None:
    if request.messages is None and request.payload_ref is None:
        raise invalid("tools go with messages", engine=request.engine)
    if request.output_mode is not OutputMode.TEXT:
        raise invalid("tools and a bound output exclude each other", engine=request.engine)
    if len({tool.name for tool in request.tools}) < len(request.tools):
        raise invalid("two tools have one name", engine=request.engine)
    size = _tools_bytes(request)
    if size > SCHEMA_BYTES_MAX:
        raise invalid(f"{size} bytes of tools; at most {SCHEMA_BYTES_MAX} are taken", engine=request.engine)


def _tools_bytes(request: TaskRequest) -> int:
    return len(msgspec.json.encode(request.tools)) if request.tools else 0


def _check_one(request: TaskRequest) -> None:
    """Exactly one of prompt, messages, inputs and a reference to them."""
    given = (request.prompt, request.messages, request.inputs, request.payload_ref)
    if sum(content is not None for content in given) != 1:
        raise invalid("give exactly one of prompt, messages and inputs", engine=request.engine)
    if request.inputs is not None:
        raise invalid("a completion needs a prompt or messages", engine=request.engine)


def _check_inputs(request: TaskRequest) -> None:
    """Texts of which each has a result: inputs alone to embed, documents with their query to rank. Engines count the
    tokens of an empty text in ways of their own, and one breaks on it."""
    workload, inputs = request.workload, request.inputs
    if not inputs:
        raise invalid(f"the workload {workload} needs inputs", engine=request.engine)
    if request.messages is not None or (request.prompt is None) is (workload is Workload.RERANK):
        asked = "a prompt, which is the query, and inputs" if workload is Workload.RERANK else "inputs and no prompt"
        raise invalid(f"the workload {workload} takes {asked}", engine=request.engine)
    if len(inputs) > INPUTS_MAX:
        raise invalid(f"{len(inputs)} inputs; at most {INPUTS_MAX} are taken", engine=request.engine)
    if request.prompt == "" or "" in inputs:
        raise invalid(f"the workload {workload} takes no empty text", engine=request.engine)
    if request.max_tokens < len(inputs):
        raise invalid(
            f"max_tokens is {request.max_tokens} and there are {len(inputs)} inputs; each result counts as one token",
            engine=request.engine,
        )


def _check_output(request: TaskRequest) -> None:
    if request.workload is not Workload.COMPLETION:
        unfit = {
            "sampling": request.sampling is not None,
            "response_schema": request.response_schema is not None,
            "output_mode": request.output_mode is not OutputMode.TEXT,
            "top_logprobs": request.top_logprobs is not None,
        }
        for name, said in unfit.items():
            if said:
                raise invalid(f"the workload {request.workload} takes no {name}", engine=request.engine)
    if request.response_schema is None:
        return
    if request.output_mode is not OutputMode.JSON:
        raise invalid("response_schema goes with output_mode json", engine=request.engine)
    size = len(msgspec.json.encode(request.response_schema))
    if size > SCHEMA_BYTES_MAX:
        raise invalid(f"{size} bytes of response_schema; at most {SCHEMA_BYTES_MAX} are taken", engine=request.engine)


def check_budget(request: TaskRequest) -> None:
    """Refuse what certainly does not fit its context (ORCH-3014, 3015)."""
    least = prompt_tokens_min(request)
    if least + request.max_tokens > request.ctx and request.workload is Workload.COMPLETION:
        raise invalid(
            f"a prompt of at least {least} tokens and max_tokens {request.max_tokens} do not fit ctx {request.ctx}",
            engine=request.engine,
        )
    if least > request.ctx:
        raise invalid(f"an input of at least {least} tokens does not fit ctx {request.ctx}", engine=request.engine)


def check_deadline(request: TaskRequest) -> None:
    if request.deadline_ms <= 0:
        raise OrchError(
            ErrorCode.DEADLINE_UNMET,
            f"deadline_ms is {request.deadline_ms}; it must be positive",
            engine=request.engine,
        )


def content_bytes(request: TaskRequest) -> int:
    """Of what the engine is given; of a reference, as JSON."""
    if request.payload_ref is not None:
        return request.payload_ref.bytes
    if request.messages is not None:
        return _tools_bytes(request) + sum(_message_bytes(message) for message in request.messages)
    return _bytes(request.prompt or "") + sum(map(_bytes, request.inputs or ()))


def _message_bytes(message: ChatMessage) -> int:
    calls = sum(_bytes(call.function.name) + _bytes(call.function.arguments) for call in message.tool_calls)
    return _bytes(message.content) + calls


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def prompt_tokens_min(request: TaskRequest) -> int:
    """A lower bound of the tokens that the engine reads at once, of a workload with inputs those of the longest: never
    more than any known tokenizer makes of it."""
    if request.workload is not Workload.COMPLETION:
        if request.payload_ref is not None:
            return 1
        longest = max(map(_bytes, request.inputs or ("",)))
        return -(-(longest + _bytes(request.prompt or "")) // BYTES_PER_TOKEN_MAX)
    per_token = BYTES_PER_TOKEN_MAX * (1 if request.payload_ref is None else ESCAPED_BYTES_MAX)
    return -(-content_bytes(request) // per_token)
