"""Requests of OpenAI clients as tasks: what is obeyed, what is passed over, and what is refused by its name."""

from typing import Any

import msgspec
import pytest

from llorch_gateway.openai.core import models
from llorch_gateway.openai.core.errors import ParamError, told
from llorch_gateway.openai.core.request import DEADLINE_MS, EXPECTED_TOKENS, Asked, read
from llorch_shared.guards import check_request
from llorch_shared.wire.registry import ReplicaState
from llorch_shared.wire.task import (
    ChatMessage,
    ChatRole,
    Determinism,
    Failover,
    OutputMode,
    PlacementMode,
    Priority,
    Sampling,
    Tool,
    ToolChoice,
)
from support.gateways import pool_spec, replica

NEW_ID = "00000000-0000-4000-8000-000000000001"
TASK = "6F1D3C1E-64A0-4E1A-9F53-0B8F3F0F6A01"
POOLS = {pool.id: pool for pool in (pool_spec("p1"), pool_spec("p2", ctx=8192), pool_spec("other", model="mock:other"))}
REPLICAS = {"p1": [replica("p1")], "p2": [replica("p2", state=ReplicaState.STARTING)]}
USER = {"role": "user", "content": "Hi"}
OFFER = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def ask(headers: dict[bytes, bytes] | None = None, *, chat: bool = True, **fields: Any) -> Asked:
    body = {"model": "mock:words", **({"messages": [USER]} if chat else {"prompt": "Hi"}), **fields}
    asked = read(msgspec.json.encode(body), headers or {}, chat=chat, new_id=NEW_ID, pools=POOLS, replicas=REPLICAS)
    check_request(asked.task)
    return asked


def test_a_plain_chat_is_a_best_effort_task_of_a_session_of_its_own() -> None:
    asked = ask()
    task = asked.task
    assert (asked.stream, asked.usage, asked.model) == (False, False, "mock:words")
    assert (task.task_id, task.session_id) == (NEW_ID, NEW_ID)
    assert task.messages == (ChatMessage(role=ChatRole.USER, content="Hi"),)
    assert (task.prompt, task.sampling, task.placement) == (None, None, None)
    assert (task.priority, task.deadline_ms) == (Priority.INTERACTIVE, DEADLINE_MS)
    assert (task.determinism, task.failover, task.seed) == (Determinism.BEST_EFFORT, Failover.RESUME, None)
    assert (task.ctx, task.max_tokens, task.expected_tokens) == (4096, 4095, EXPECTED_TOKENS), "it may fill the context"


def test_a_ready_pool_comes_first_and_a_pools_id_pins_the_task_to_it() -> None:
    assert ask().task.ctx == 4096, "the pool with the larger context is loading"
    pinned = ask(model="p2").task
    assert (pinned.model_ref, pinned.ctx) == ("mock:words", 8192)
    assert pinned.placement is not None
    assert (pinned.placement.mode, pinned.placement.pin_pool_id) == (PlacementMode.PIN, "p2")


def test_messages_of_parts_and_developers_are_what_templates_know() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    turns = [
        {"role": "developer", "content": "d"},
        {"role": "user", "content": parts, "name": "ann"},
        {"role": "assistant", "content": "c", "refusal": None, "tool_calls": None, "annotations": []},
    ]
    task = ask(messages=turns).task
    assert [(each.role, each.content) for each in task.messages or ()] == [
        (ChatRole.SYSTEM, "d"),
        (ChatRole.USER, "ab"),
        (ChatRole.ASSISTANT, "c"),
    ]


def test_tools_go_with_their_conversation_into_the_task() -> None:
    answered = {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "sunny"}]}
    turns = [USER, {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None}, answered]
    task = ask(messages=turns, tools=[OFFER], tool_choice="required", parallel_tool_calls=False).task
    assert task.tools == (Tool(name="f", description="d", parameters={"type": "object"}),)
    assert (task.tool_choice, task.parallel_tool_calls) == (ToolChoice.REQUIRED, False)
    assert task.messages is not None
    assert [(each.role, each.content, each.tool_call_id) for each in task.messages] == [
        (ChatRole.USER, "Hi", None),
        (ChatRole.ASSISTANT, "", None),
        (ChatRole.TOOL, "sunny", "c1"),
    ]
    assert msgspec.to_builtins(task.messages[1].tool_calls) == (CALL,)


def test_a_named_function_is_the_only_one_and_none_are_none() -> None:
    other = {"type": "function", "function": {"name": "g"}}
    named = ask(tools=[OFFER, other], tool_choice={"type": "function", "function": {"name": "g"}}).task
    assert ([tool.name for tool in named.tools], named.tool_choice) == (["g"], ToolChoice.REQUIRED)
    assert ask(tools=[OFFER], tool_choice="none").task.tools == ()
    assert ask(tools=[OFFER]).task.tool_choice is ToolChoice.AUTO


def test_log_probabilities_are_those_of_the_task() -> None:
    assert ask().task.top_logprobs is None
    assert ask(logprobs=True).task.top_logprobs == 0
    assert ask(logprobs=True, top_logprobs=4).task.top_logprobs == 4
    assert ask(chat=False, logprobs=5).task.top_logprobs == 5


def test_sampling_is_what_the_client_says_and_nothing_else() -> None:
    said = {"temperature": 1.5, "top_p": 0.5, "top_k": 7, "min_p": 0.1, "frequency_penalty": -1, "presence_penalty": 2}
    assert ask(**said, stop="\n").task.sampling == Sampling(**said, stop=("\n",))
    assert ask(stop=["a", "b"]).task.sampling == Sampling(stop=("a", "b"))


@pytest.mark.parametrize(
    ("fields", "determinism", "seed"),
    [
        ({"seed": 7, "temperature": 0}, Determinism.STRICT, 7),
        ({"seed": 7}, Determinism.BEST_EFFORT, 7),
        ({"seed": 7, "temperature": 0.1}, Determinism.BEST_EFFORT, 7),
        ({"temperature": 0}, Determinism.BEST_EFFORT, None),
        ({"seed": -1, "temperature": 0}, Determinism.STRICT, 2**32 - 2),
        ({"seed": 2**63 - 1}, Determinism.BEST_EFFORT, (2**63 - 1) % (2**32 - 1)),
    ],
)
def test_a_seed_with_temperature_0_is_strict(fields: dict[str, Any], determinism: Determinism, seed: int) -> None:
    task = ask(**fields).task
    assert (task.determinism, task.seed) == (determinism, seed)


def test_how_many_tokens() -> None:
    assert ask(max_tokens=5).task.max_tokens == 5
    assert ask(max_tokens=5, max_completion_tokens=6).task.max_tokens == 6
    text = ask(chat=False)
    assert (text.task.prompt, text.task.max_tokens, text.task.expected_tokens) == ("Hi", 16, None)
    assert ask(chat=False, prompt=["Hi"], max_tokens=3).task.prompt == "Hi"


def test_an_output_bound_to_json() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    bound = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    for response_format, wanted in ((bound, schema), ({"type": "json_object"}, {"type": "object"})):
        task = ask(response_format=response_format).task
        assert (task.output_mode, task.response_schema) == (OutputMode.JSON, wanted)
    plain = ask(response_format={"type": "text"}).task
    assert (plain.output_mode, plain.response_schema) == (OutputMode.TEXT, None)


def test_what_this_system_can_be_told_besides_and_headers_win() -> None:
    body = {"priority": "batch", "deadline_ms": 5000, "session": TASK, "failover": "fail", "task_id": TASK}
    task = ask(llorch=body).task
    assert (task.priority, task.deadline_ms, task.failover) == (Priority.BATCH, 5000, Failover.FAIL)
    assert (task.task_id, task.session_id) == (TASK.lower(), TASK.lower())
    headers = {
        b"x-llorch-priority": b"interactive",
        b"x-llorch-deadline-ms": b"7",
        b"x-llorch-session": NEW_ID.encode(),
        b"x-llorch-failover": b"resume",
        b"x-llorch-task-id": NEW_ID.encode(),
    }
    task = ask(headers, llorch=body).task
    assert (task.priority, task.deadline_ms, task.failover) == (Priority.INTERACTIVE, 7, Failover.RESUME)
    assert (task.task_id, task.session_id) == (NEW_ID, NEW_ID)


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


@pytest.mark.parametrize(("mode", "choice"), [("auto", ToolChoice.AUTO), ("required", ToolChoice.REQUIRED)])
def test_of_the_tools_only_those_that_are_allowed_are_offered(mode: str, choice: ToolChoice) -> None:
    tools = [{**OFFER, "function": {**OFFER["function"], "name": name}} for name in ("f", "g", "h")]
    task = ask(tools=tools, tool_choice=allowed(mode, "h", "f"), logprobs=True, top_logprobs=3).task
    assert [tool.name for tool in task.tools] == ["f", "h"]
    assert (task.tool_choice, task.top_logprobs) == (choice, 3)


def test_what_changes_nothing_is_taken() -> None:
    ask(
        user="ann",
        metadata={"a": "b"},
        store=True,
        service_tier="auto",
        safety_identifier="x",
        prompt_cache_key="k",
        parallel_tool_calls=True,
        n=1,
        logprobs=False,
        logit_bias={},
        tools=[],
        tool_choice="auto",
        modalities=["text"],
        top_logprobs=None,
        response_format=None,
    )
    assert ask(stream=True, stream_options={"include_usage": True}).usage
    assert not ask(stream=True, stream_options={}).usage


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"n": True}, "n"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "g"}}, "tools": [OFFER]}, "tool_choice"),
        ({"tools": [OFFER], "tool_choice": allowed("auto", "g")}, "tool_choice"),
        ({"tools": [OFFER], "tool_choice": allowed("never", "f")}, "tool_choice.allowed_tools.mode"),
        ({"tools": [OFFER], "tool_choice": allowed("auto")}, "tool_choice.allowed_tools.tools"),
        ({"tools": [OFFER], "tool_choice": {"type": "custom", "custom": {"name": "f"}}}, "tool_choice.type"),
        ({"tools": [OFFER], "response_format": {"type": "json_object"}}, "tools"),
        ({"audio": {}}, "audio"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"logit_bias": {"1": 1}}, "logit_bias"),
        ({"colour": 1}, "colour"),
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 50_001}, "max_tokens"),
        ({"max_completion_tokens": 50_001}, "max_completion_tokens"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{**USER, "tool_call_id": "c"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].role"),
        ({"messages": [USER, {"role": "assistant"}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{**USER, "tool_calls": [CALL]}]}, "messages[0].tool_calls"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"llorch": {"failover": "restart"}}, "llorch.failover"),
        ({"llorch": {"colour": 1}}, "llorch.colour"),
        ({"model": "nobody"}, "model"),
    ],
)
def test_what_is_not_served_is_refused_by_its_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ParamError) as refused:
        ask(**fields)
    error = told(refused.value).error
    assert (error.param, error.code, error.type) == (param, "INVALID_PARAMS", "invalid_request_error")
    assert refused.value.status == (404 if param == "model" else 400)


@pytest.mark.parametrize(
    "fields", [{"prompt": ["a", "b"]}, {"prompt": [1, 2]}, {"echo": True}, {"best_of": 2}, {"suffix": "x"}]
)
def test_a_text_completion_refuses_what_it_does_not_serve(fields: dict[str, Any]) -> None:
    with pytest.raises(ParamError):
        ask(chat=False, **fields)


@pytest.mark.parametrize(
    ("header", "value"),
    [
        (b"x-llorch-priority", b"urgent"),
        (b"x-llorch-deadline-ms", b"soon"),
        (b"x-llorch-deadline-ms", b"0"),
        (b"x-llorch-session", b"\xff"),
        (b"x-llorch-failover", b"restart"),
        (b"x-llorch-task-id", b""),
    ],
)
def test_a_header_that_says_nonsense_is_refused_by_its_name(header: bytes, value: bytes) -> None:
    with pytest.raises(ParamError) as refused:
        ask({header: value})
    assert refused.value.param == header.decode()


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"model":"\xff"}', b'{"messages":' + b"[" * 100_000])
def test_what_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(ParamError):
        read(body, {}, chat=True, new_id=NEW_ID, pools=POOLS, replicas=REPLICAS)


def test_models_are_what_pools_serve() -> None:
    listed = models.listed(POOLS, REPLICAS).data
    assert [(each.id, each.pools, each.ctx_max, each.ready) for each in listed] == [
        ("mock:other", ("other",), 4096, False),
        ("mock:words", ("p1", "p2"), 8192, True),
    ]
    assert models.one("p2", POOLS, REPLICAS) == models.one("mock:words", POOLS, REPLICAS) == listed[1]
