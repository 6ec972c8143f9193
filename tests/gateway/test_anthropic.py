"""The Messages API: requests as tasks, and frames as its events and messages."""

import json
from typing import Any

import msgspec
import pytest

from llorch_gateway.anthropic.core.answer import PING, Events, Whole
from llorch_gateway.anthropic.core.errors import told
from llorch_gateway.anthropic.core.request import read
from llorch_gateway.openai.core.errors import ParamError
from llorch_gateway.openai.core.request import Asked
from llorch_shared.errors import ErrorBody, ErrorCode, OrchError, invalid
from llorch_shared.guards import check_request
from llorch_shared.wire.frames import (
    End,
    Metrics,
    Started,
    encode_end,
    encode_error,
    encode_metrics,
    encode_started,
    encode_token,
)
from llorch_shared.wire.task import MESSAGES_MAX, TOOLS_MAX, ChatRole, Priority, Sampling, Tool, ToolChoice
from support.client import task_request
from support.gateways import pool_spec, replica

NEW_ID = "00000000-0000-4000-8000-000000000001"
POOLS = {"p1": pool_spec("p1")}
REPLICAS = {"p1": [replica("p1")]}
USER: dict[str, Any] = {"role": "user", "content": "Hi"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"name": "f", "description": "d", "input_schema": SCHEMA}
USE = {"type": "tool_use", "id": "c1", "name": "f", "input": {"city": "Rome"}}


def ask(headers: dict[bytes, bytes] | None = None, **fields: Any) -> Asked:
    body = {"model": "mock:words", "messages": [USER], "max_tokens": 9, **fields}
    asked = read(msgspec.json.encode(body), headers or {}, new_id=NEW_ID, pools=POOLS, replicas=REPLICAS)
    check_request(asked.task)
    return asked


def test_a_message_is_a_chat_with_its_system_first() -> None:
    said = {"temperature": 0.5, "top_p": 0.5, "top_k": 7}
    system = [{"type": "text", "text": "Be brief."}]
    asked = ask({b"x-llorch-priority": b"batch"}, system=system, stream=True, **said, stop_sequences=["END"])
    task = asked.task
    assert (asked.stream, asked.chat, asked.model) == (True, True, "mock:words")
    assert [(each.role, each.content) for each in task.messages or ()] == [
        (ChatRole.SYSTEM, "Be brief."),
        (ChatRole.USER, "Hi"),
    ]
    assert (task.max_tokens, task.priority) == (9, Priority.BATCH)
    assert task.sampling == Sampling(temperature=0.5, top_p=0.5, top_k=7, stop=("END",))


def test_blocks_are_the_turns_that_templates_know() -> None:
    cached = {"cache_control": {"type": "ephemeral"}}
    result = {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "sunny"}], **cached}
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "a", **cached}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "See."}, USE]},
        {"role": "user", "content": [result, {"type": "text", "text": "And?"}]},
    ]
    task = ask(messages=turns, tools=[TOOL], tool_choice={"type": "any", "disable_parallel_tool_use": True}).task
    assert [(each.role, each.content, each.tool_call_id) for each in task.messages or ()] == [
        (ChatRole.USER, "a\nb", None),
        (ChatRole.ASSISTANT, "See.", None),
        (ChatRole.TOOL, "sunny", "c1"),
        (ChatRole.USER, "And?", None),
    ]
    assert task.messages is not None
    (call,) = task.messages[1].tool_calls
    assert (call.id, call.function.name, json.loads(call.function.arguments)) == ("c1", "f", {"city": "Rome"})
    assert task.tools == (Tool(name="f", description="d", parameters=SCHEMA),)
    assert (task.tool_choice, task.parallel_tool_calls) == (ToolChoice.REQUIRED, False)


@pytest.mark.parametrize(
    "turns",
    [
        [{"role": "assistant", "content": [USE] * (TOOLS_MAX + 1)}],
        [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1"}] * (MESSAGES_MAX + 1)}],
    ],
)
def test_blocks_are_no_more_turns_and_calls_than_a_task_may_have(turns: list[dict[str, Any]]) -> None:
    with pytest.raises(ParamError, match="at most"):
        ask(messages=turns)


def test_a_named_tool_is_the_only_one_and_none_are_none() -> None:
    other = {**TOOL, "name": "g"}
    named = ask(tools=[TOOL, other], tool_choice={"type": "tool", "name": "g"}).task
    assert ([tool.name for tool in named.tools], named.tool_choice) == (["g"], ToolChoice.REQUIRED)
    assert ask(tools=[TOOL], tool_choice={"type": "none"}).task.tools == ()
    assert ask(tools=[TOOL], thinking={"type": "disabled"}, metadata={"user_id": "u"}).task.tool_choice == "auto"


def test_a_schema_binds_the_output() -> None:
    task = ask(output_config={"format": {"type": "json_schema", "schema": SCHEMA}}, speed="fast").task
    assert (task.output_mode, task.response_schema) == ("json", SCHEMA)


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 0},
        {"messages": []},
        {"messages": [{"role": "system", "content": "x"}]},
        {"messages": [{"role": "user", "content": []}]},
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
        {"messages": [{"role": "user", "content": [USE]}]},
        {"messages": [{"role": "assistant", "content": [{"type": "tool_result", "tool_use_id": "c1"}]}]},
        {"temperature": 1.5},
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        {"tools": [TOOL], "tool_choice": {"type": "tool"}},
        {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "nobody"}},
        {"tool_choice": {"type": "any"}},
        {"colour": 1},
        {"output_config": {"effort": "high"}},
        {"container": "c"},
        {"model": "nobody"},
    ],
)
def test_what_is_not_served_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ParamError) as refused:
        ask(**fields)
    error = told(refused.value, "r").error
    assert error.type == ("not_found_error" if "model" in fields else "invalid_request_error")


TASK = msgspec.structs.replace(task_request(), tools=(Tool(name="f"),))
HOW = Asked(task=TASK, chat=True, model="m", stream=True, usage=False)
STARTED = b"retry: 1000\n\n" + encode_started(Started(queue_position=0, predicted_start_ms=0, tokens_in=3))
HEAD = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": "{"}}


def call_piece(piece: dict[str, Any]) -> bytes:
    return b',"tool_calls":[%b]' % msgspec.json.encode(piece)


TOKENS = [
    encode_token(1, 0, 'Gr\u00fc\u00dfe "'),
    encode_token(1, 1, ""),
    encode_token(1, 2, "x"),
    encode_token(1, 3, "", call_piece(HEAD)),
    encode_token(1, 4, "", call_piece({"index": 0, "function": {"arguments": '"a":1}'}})),
]


def end(reason: str = "tool_calls", stop: str | None = None) -> bytes:
    said = End(tokens_out=5, decode_ms=1, decode_time_ms=1, finish_reason=reason, tokens_in=3, stop_sequence=stop)
    return encode_end(1, said)


def events(data: bytes) -> list[dict[str, Any]]:
    found = []
    for block in data.decode().split("\n\n")[:-1]:
        name, _, said = block.partition("\ndata: ")
        event = json.loads(said)
        assert name == f"event: {event['type']}"
        found.append(event)
    return found


@pytest.mark.parametrize("at_once", [True, False])
def test_a_stream_has_the_documented_events_in_their_order(at_once: bool) -> None:
    answer = Events(HOW, "req")
    frames = [STARTED, *TOKENS, end()]
    got = events(b"".join(map(answer.feed, [b"".join(frames)] if at_once else frames)))
    kinds = [event["type"] for event in got if event["type"] != "content_block_delta"]
    assert kinds == [
        *("message_start", "content_block_start", "content_block_stop"),
        *("content_block_start", "content_block_stop", "message_delta", "message_stop"),
    ]
    assert got[0]["message"]["content"] == []
    assert got[0]["message"]["id"] == f"msg_{TASK.task_id}"
    deltas = [event["delta"] for event in got if event["type"] == "content_block_delta"]
    assert "".join(delta["text"] for delta in deltas if delta["type"] == "text_delta") == 'Gr\u00fc\u00dfe "x'
    pieces = [delta["partial_json"] for delta in deltas if delta["type"] == "input_json_delta"]
    assert "".join(pieces) == '{"a":1}'
    starts = [event for event in got if event["type"] == "content_block_start"]
    assert [each["index"] for each in starts] == [0, 1]
    assert starts[1]["content_block"] == {"type": "tool_use", "id": "c1", "name": "f", "input": {}}
    assert got[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert got[-2]["usage"] == {"input_tokens": 3, "output_tokens": 5}


def test_a_whole_message_has_all_blocks() -> None:
    whole = Whole(HOW)
    for frame in (STARTED, *TOKENS, end()):
        whole.feed(frame)
    body = json.loads(whole.body())
    assert body["content"] == [
        {"type": "text", "text": 'Gr\u00fc\u00dfe "x'},
        {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}},
    ]
    assert (body["stop_reason"], body["usage"]) == ("tool_use", {"input_tokens": 3, "output_tokens": 5})


@pytest.mark.parametrize("reason", ["length", "budget"])
def test_a_call_that_the_limit_cut_off_is_no_block_of_a_whole_message(reason: str) -> None:
    whole = Whole(HOW)
    whole.feed(b"".join(TOKENS[:4]) + end(reason))
    body = json.loads(whole.body())
    assert ([block["type"] for block in body["content"]], body["stop_reason"]) == (["text"], "max_tokens")
    broken = Whole(HOW)
    broken.feed(b"".join(TOKENS[:4]) + end())
    assert broken.error is not None, "an engine that says it is through sent half a call"


@pytest.mark.parametrize(
    ("reason", "word", "stop"),
    [
        ("stop", None, ("end_turn", None)),
        ("stop", "END", ("stop_sequence", "END")),
        ("length", None, ("max_tokens", None)),
    ],
)
def test_why_it_stopped(reason: str, word: str | None, stop: tuple[str, str | None]) -> None:
    whole = Whole(HOW)
    whole.feed(TOKENS[0] + end(reason, word))
    body = json.loads(whole.body())
    assert (body["stop_reason"], body["stop_sequence"]) == stop


def test_who_waits_is_told_so_and_nothing_else_before_the_first_token() -> None:
    answer = Events(HOW, "req")
    assert answer.feed(STARTED) == b""
    assert answer.feed(b":\n\n") == PING
    assert events(answer.feed(TOKENS[0]))[0]["type"] == "message_start"


@pytest.mark.parametrize("begun", [True, False])
def test_an_error_is_the_last_event_once_something_was_said(begun: bool) -> None:
    answer = Events(HOW, "req")
    if begun:
        answer.feed(TOKENS[0])
    said = answer.feed(encode_error(1, 1, ErrorBody(code=ErrorCode.WORKER_RESET, message="lost")))
    assert answer.error is not None
    if begun:
        (error,) = events(said)
        assert (error["error"]["code"], error["request_id"]) == ("WORKER_RESET", "req")
    else:
        assert said == b"", "it can still be the answer"


def test_text_cannot_be_taken_back() -> None:
    answer = Events(HOW, "req")
    answer.feed(TOKENS[0])
    last = events(answer.feed(encode_metrics(Metrics(attempt=2, restarted_at=1))))
    assert [event["type"] for event in last] == ["error"]
    assert answer.over


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (invalid("x"), "invalid_request_error"),
        (invalid("x", status=413), "request_too_large"),
        (OrchError(ErrorCode.BAD_TOKEN, "x"), "authentication_error"),
        (OrchError(ErrorCode.ADMISSION_REJECT, "x"), "rate_limit_error"),
        (OrchError(ErrorCode.POOL_UNAVAILABLE, "x"), "overloaded_error"),
        (OrchError(ErrorCode.INTERNAL, "x"), "api_error"),
    ],
)
def test_errors_have_the_types_that_clients_know(error: OrchError, kind: str) -> None:
    body = told(error, "req")
    assert (body.type, body.error.type, body.request_id) == ("error", kind, "req")
