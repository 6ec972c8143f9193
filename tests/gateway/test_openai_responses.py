"""The Responses API: requests as tasks, and frames as its events and objects."""

import json
from typing import Any

import msgspec
import pytest

from llorch_gateway.openai.core.errors import ParamError
from llorch_gateway.openai.core.responses_answer import HEARTBEAT, Events, Whole
from llorch_gateway.openai.core.responses_request import AskedResponse, read
from llorch_shared.errors import ErrorBody, ErrorCode
from llorch_shared.guards import check_request
from llorch_shared.wire.frames import End, Metrics, encode_end, encode_error, encode_metrics, encode_token
from llorch_shared.wire.task import ChatRole, OutputMode, Sampling, ToolChoice
from support.gateways import pool_spec, replica

NEW_ID = "00000000-0000-4000-8000-000000000001"
POOLS = {"p1": pool_spec("p1")}
REPLICAS = {"p1": [replica("p1")]}
TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}
CALL = {"type": "function_call", "id": "fc", "call_id": "c1", "name": "f", "arguments": "{}", "status": "completed"}
ANSWERED = {"type": "function_call_output", "call_id": "c1", "output": "sunny"}
SCHEMA = {"type": "object"}
LOGPROBS = "message.output_text.logprobs"
ALLOWED = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]}
WEIGHT = {"token": "é", "logprob": -0.5, "bytes": [195, 169], "top_logprobs": [{"token": "b", "logprob": -0.25}]}
TOLD = {"token": "é", "logprob": -0.5, "top_logprobs": [{"token": "b", "logprob": -0.25}]}
KEPT = {**TOLD, "bytes": [195, 169], "top_logprobs": [{"token": "b", "logprob": -0.25, "bytes": [98]}]}
"""As events have it, and as the part of a message has it."""


def ask(**fields: Any) -> AskedResponse:
    body = {"model": "mock:words", "input": "Hi", **fields}
    response = read(msgspec.json.encode(body), {}, new_id=NEW_ID, pools=POOLS, replicas=REPLICAS)
    check_request(response.asked.task)
    return response


def test_a_text_is_a_chat_behind_its_instructions() -> None:
    response = ask(instructions="Be brief.", max_output_tokens=9, temperature=0.5, top_p=0.5, stream=True, store=False)
    task = response.asked.task
    assert response.asked.stream
    assert [(each.role, each.content) for each in task.messages or ()] == [
        (ChatRole.SYSTEM, "Be brief."),
        (ChatRole.USER, "Hi"),
    ]
    assert (task.max_tokens, task.sampling) == (9, Sampling(temperature=0.5, top_p=0.5))


def test_items_are_the_turns_that_templates_know() -> None:
    said = {"type": "message", "id": "m", "role": "assistant", "status": "completed"}
    said["content"] = [{"type": "output_text", "text": "See.", "annotations": []}]  # type: ignore[assignment]
    asked = {"role": "user", "content": [{"type": "input_text", "text": "Rome?"}]}
    again = {**CALL, "call_id": "c2"}
    response = ask(input=[asked, said, CALL, again, ANSWERED], tools=[TOOL], tool_choice="required")
    task = response.asked.task
    assert [(each.role, each.content, each.tool_call_id) for each in task.messages or ()] == [
        (ChatRole.USER, "Rome?", None),
        (ChatRole.ASSISTANT, "See.", None),
        (ChatRole.TOOL, "sunny", "c1"),
    ]
    assert task.messages is not None
    assert [call.id for call in task.messages[1].tool_calls] == ["c1", "c2"]
    assert ([tool.name for tool in task.tools], task.tool_choice) == (["f"], ToolChoice.REQUIRED)


def test_a_schema_binds_the_output() -> None:
    wanted = {"type": "json_schema", "name": "c", "schema": SCHEMA, "strict": True}
    task = ask(text={"format": wanted}).asked.task
    assert (task.output_mode, task.response_schema) == (OutputMode.JSON, SCHEMA)
    assert ask(text={"format": {"type": "text"}, "verbosity": "low"}).asked.task.response_schema is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"include": ["reasoning.encrypted_content"]}, "include"),
        ({"include": [LOGPROBS, "file_search_call.results"]}, "include"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"include": [LOGPROBS], "top_logprobs": 21}, "top_logprobs"),
        ({"include": [LOGPROBS], "top_logprobs": -1}, "top_logprobs"),
        ({"tools": [TOOL], "tool_choice": {**ALLOWED, "mode": "none"}}, "tool_choice.mode"),
        ({"tools": [], "tool_choice": ALLOWED}, "tool_choice"),
        ({"tools": [{"type": "custom", "name": "f"}]}, "tools[0].type"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": {"type": "function", "name": "g"}, "tools": [TOOL]}, "tool_choice"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user"}]}, "input[0]"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0]"),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"colour": 1}, "colour"),
    ],
)
def test_what_is_not_served_is_refused_by_its_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ParamError) as refused:
        ask(**fields)
    assert refused.value.param == param


HOW = ask(tools=[TOOL])
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


def end(reason: str = "tool_calls") -> bytes:
    return encode_end(1, End(tokens_out=5, decode_ms=1, decode_time_ms=1, finish_reason=reason, tokens_in=3))


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
    answer = Events(HOW, created=7)
    frames = [*TOKENS, end()]
    got = events(b"".join(map(answer.feed, [b"".join(frames)] if at_once else frames)))
    assert [event["sequence_number"] for event in got] == list(range(len(got)))
    kinds = [event["type"].removeprefix("response.") for event in got if not event["type"].endswith(".delta")]
    assert kinds == [
        *("created", "in_progress"),
        *("output_item.added", "content_part.added", "output_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.done", "output_item.done"),
        "completed",
    ]
    deltas = {
        kind: "".join(event["delta"] for event in got if event["type"] == f"response.{kind}.delta")
        for kind in ("output_text", "function_call_arguments")
    }
    assert deltas == {"output_text": 'Gr\u00fc\u00dfe "x', "function_call_arguments": '{"a":1}'}
    response = got[-1]["response"]
    whole = Whole(HOW, created=7)
    for frame in frames:
        whole.feed(frame)
    assert json.loads(whole.body()) == response
    assert [item["type"] for item in response["output"]] == ["message", "function_call"]
    assert response["output"][0]["content"][0]["text"] == 'Gr\u00fc\u00dfe "x'
    assert (response["output"][1]["call_id"], response["output"][1]["arguments"]) == ("c1", '{"a":1}')
    assert (response["status"], response["usage"]["total_tokens"]) == ("completed", 8)
    assert [event["item"] for event in got if event["type"] == "response.output_item.done"] == response["output"]


def test_log_probabilities_stand_in_events_and_in_the_message() -> None:
    how = ask(include=[LOGPROBS], top_logprobs=1)
    assert how.asked.task.top_logprobs == 1
    assert ask(include=[LOGPROBS]).asked.task.top_logprobs == 0
    assert ask(include=[], top_logprobs=0).asked.task.top_logprobs is None
    frames = [encode_token(1, at, "\u00e9", b',"logprobs":%b' % msgspec.json.encode(WEIGHT)) for at in range(2)]
    answer, whole = Events(how, created=7), Whole(how, created=7)
    got = []
    for frame in (*frames, end("stop")):
        got += events(answer.feed(frame))
        whole.feed(frame)
    assert [event["logprobs"] for event in got if event["type"] == "response.output_text.delta"] == [[TOLD], [TOLD]]
    assert [event["logprobs"] for event in got if event["type"] == "response.output_text.done"] == [[TOLD, TOLD]]
    response = got[-1]["response"]
    assert (response["output"][0]["content"][0]["logprobs"], response["top_logprobs"]) == ([KEPT, KEPT], 1)
    assert json.loads(whole.body()) == response


def test_only_allowed_tools_are_offered() -> None:
    response = ask(tools=[TOOL, {**TOOL, "name": "g"}], tool_choice=ALLOWED)
    task = response.asked.task
    assert ([tool.name for tool in task.tools], task.tool_choice) == (["f"], ToolChoice.REQUIRED)
    (created, _) = events(Events(response, created=7).feed(TOKENS[0]))[:2]
    assert created["response"]["tool_choice"] == ALLOWED
    assert len(created["response"]["tools"]) == 2


def test_what_the_limit_cut_off_is_incomplete() -> None:
    answer = Events(HOW, created=7)
    got = events(b"".join(map(answer.feed, [*TOKENS[:1], end("length")])))
    assert got[-1]["type"] == "response.incomplete"
    assert got[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert got[-1]["response"]["output"][-1]["status"] == "incomplete"


def test_errors_come_before_the_answer_or_at_its_end() -> None:
    error = encode_error(1, 1, ErrorBody(code=ErrorCode.WORKER_RESET, message="lost"))
    early = Events(HOW, created=7)
    assert early.feed(error) == b"", "it can still be the answer"
    late = Events(HOW, created=7)
    assert late.feed(b":\n\n") == HEARTBEAT
    late.feed(TOKENS[0])
    (said,) = events(late.feed(error))
    assert (said["type"], said["code"]) == ("error", "WORKER_RESET")
    void = Events(HOW, created=7)
    void.feed(TOKENS[0])
    assert [event["type"] for event in events(void.feed(encode_metrics(Metrics(attempt=2, restarted_at=1))))] == [
        "error"
    ]
