"""Frames as the answers of OpenAI clients: chunk by chunk and whole, and never a short one in silence."""

import json
from typing import Any

import msgspec
import pytest

from llorch_gateway.openai.core.answer import Chunks, Whole
from llorch_gateway.openai.core.request import Asked
from llorch_shared.errors import ErrorBody, ErrorCode
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
from llorch_shared.wire.task import TaskRequest, Tool
from support.client import task_request

RETRY = b"retry: 1000\n\n"
STARTED = encode_started(Started(queue_position=0, predicted_start_ms=0, tokens_in=3))
FACTS = encode_metrics(Metrics(queue_depth=1))
TEXTS = [" Grüße", ' "x"\n\n', "\U0001f600", "", "\\ \u2028"]
TOKENS = [encode_token(1, index, text) for index, text in enumerate(TEXTS)]
TASK = task_request()


def end(reason: str = "stop") -> bytes:
    return encode_end(1, End(tokens_out=5, decode_ms=1, decode_time_ms=1, finish_reason=reason, tokens_in=3))


def asked(*, chat: bool = True, usage: bool = False, task: TaskRequest = TASK) -> Asked:
    return Asked(task=task, chat=chat, model='m"1', stream=True, usage=usage)


def events(data: bytes) -> list[Any]:
    """As a client reads them; `[DONE]` stays text."""
    assert data.endswith(b"\n\n") or not data
    found = []
    for block in data.decode().split("\n\n"):
        if block.startswith("data: "):
            found.append(block[6:] if block == "data: [DONE]" else json.loads(block[6:]))
        else:
            assert block in ("", ":"), block
    return found


def one_by_one(*frames: bytes, **how: Any) -> list[Any]:
    chunks = Chunks(asked(**how), created=7)
    return events(b"".join(chunks.feed(frame) for frame in frames))


def said(chunks: list[Any], *, chat: bool = True) -> str:
    choices = [choice for chunk in chunks if isinstance(chunk, dict) for choice in chunk.get("choices", ())]
    return "".join(choice["delta"].get("content", "") if chat else choice["text"] for choice in choices)


def test_a_chat_is_streamed_as_chunks_that_hold_its_tokens_bytes() -> None:
    got = one_by_one(RETRY + STARTED, FACTS, *TOKENS, end())
    assert got[-1] == "[DONE]"
    assert said(got) == "".join(TEXTS)
    first, last = got[0], got[-2]
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert (last["choices"][0]["delta"], last["choices"][0]["finish_reason"]) == ({}, "stop")
    assert len(got) == 1 + 4 + 2, "a token without text is no chunk"
    for chunk in got[:-1]:
        assert (chunk["id"], chunk["object"]) == (f"chatcmpl-{TASK.task_id}", "chat.completion.chunk")
        assert (chunk["created"], chunk["model"]) == (7, 'm"1')
        assert "usage" not in chunk


def test_what_comes_at_once_is_one_chunk() -> None:
    got = one_by_one(RETRY + STARTED + b"".join(TOKENS) + end("length"))
    assert [len(chunk["choices"][0]["delta"]) for chunk in got[:-1]] == [2, 1, 0]
    assert said(got) == "".join(TEXTS)
    assert got[-2]["choices"][0]["finish_reason"] == "length"


CALL_PIECES: tuple[tuple[int, dict[str, Any]], ...] = (
    (0, {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"i":'}}),
    (2, {"index": 0, "function": {"arguments": '"\\"t\\":1"'}}),
    (3, {"index": 0, "function": {"arguments": "}"}}),
)
WITH_TOOLS = msgspec.structs.replace(TASK, tools=(Tool(name="f"),))


def call_frames() -> list[bytes]:
    """Five tokens, the second with text and none of the call."""
    more = {index: b',"tool_calls":[%b]' % msgspec.json.encode(piece) for index, piece in CALL_PIECES}
    return [encode_token(1, index, "x" if index == 1 else "", more.get(index, b"")) for index in range(5)]


@pytest.mark.parametrize("at_once", [True, False])
def test_pieces_of_a_call_are_chunks_as_the_engine_made_them(at_once: bool) -> None:
    frames = call_frames()
    chunks = Chunks(asked(task=WITH_TOOLS), created=7)
    got = events(b"".join(chunks.feed(part) for part in ([b"".join(frames)] if at_once else frames)))
    got += events(chunks.feed(end("tool_calls")))
    deltas = [chunk["choices"][0]["delta"] for chunk in got[:-1]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert [piece for delta in deltas for piece in delta.get("tool_calls", ())] == [piece for _, piece in CALL_PIECES]
    assert said(got) == "x"
    assert got[-2]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_whole_answer_has_the_whole_call() -> None:
    whole = Whole(asked(task=WITH_TOOLS), created=7)
    for part in (STARTED, *call_frames()[:1], b"".join(call_frames()[1:]), end("tool_calls")):
        whole.feed(part)
    choice = json.loads(whole.body())["choices"][0]
    called = {"name": "f", "arguments": '{"i":"\\"t\\":1"}'}
    assert choice["message"]["tool_calls"] == [{"id": "c1", "type": "function", "function": called}]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("x", "tool_calls")


WEIGHED = msgspec.structs.replace(TASK, top_logprobs=1)
TOP = [{"token": "b", "logprob": -0.25, "bytes": None}]
WEIGHT = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": TOP}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("chat", [True, False])
def test_log_probabilities_stand_beside_the_text_they_belong_to(chat: bool, stream: bool) -> None:
    frames = [encode_token(1, i, "a", b',"logprobs":%b' % msgspec.json.encode(WEIGHT)) for i in range(2)]
    how = asked(chat=chat, task=WEIGHED)
    if stream:
        chunks = Chunks(how, created=7)
        got = [
            choice["logprobs"]
            for each in [*frames, end()]
            for chunk in events(chunks.feed(each))
            if isinstance(chunk, dict)
            for choice in chunk["choices"]
            if choice["logprobs"]
        ]
    else:
        whole = Whole(how, created=7)
        whole.feed(b"".join(frames) + end())
        got = [json.loads(whole.body())["choices"][0]["logprobs"]]
    if chat:
        assert [token for each in got for token in each["content"]] == [WEIGHT, WEIGHT]
    else:
        assert [offset for each in got for offset in each["text_offset"]] == [0, 1]
        assert [weight for each in got for weight in each["token_logprobs"]] == [-0.5, -0.5]
        assert [top for each in got for top in each["top_logprobs"]] == [{"b": -0.25}] * 2


def test_usage_comes_last_when_it_is_asked_for() -> None:
    got = one_by_one(*TOKENS, end(), usage=True)
    assert all(chunk["usage"] is None for chunk in got[:-2])
    assert got[-2]["choices"] == []
    assert got[-2]["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}


def test_a_text_completion_has_no_greeting() -> None:
    got = one_by_one(RETRY + STARTED, *TOKENS, end(), chat=False)
    assert said(got, chat=False) == "".join(TEXTS)
    assert {chunk["object"] for chunk in got[:-1]} == {"text_completion"}
    assert got[0]["id"] == f"cmpl-{TASK.task_id}"


def test_a_task_that_generates_nothing_has_an_empty_answer() -> None:
    got = one_by_one(STARTED, end())
    assert (said(got), got[-1]) == ("", "[DONE]")


ERROR = ErrorBody(code=ErrorCode.WORKER_RESET, message="the engine was lost", pool_id="p1")


def test_an_error_before_the_first_token_is_not_of_the_stream() -> None:
    chunks = Chunks(asked(), created=7)
    assert chunks.feed(RETRY + STARTED + FACTS) == b""
    assert chunks.feed(encode_error(1, 0, ERROR)) == b""
    assert chunks.over
    assert chunks.error == ERROR


@pytest.mark.parametrize("before", [b"".join(TOKENS), b":\n\n"], ids=["tokens", "heartbeat"])
def test_an_error_after_the_stream_began_is_its_last_event(before: bytes) -> None:
    got = one_by_one(STARTED, before, encode_error(1, 5, ERROR), end())
    assert got[-1] == {
        "error": {
            "message": "the engine was lost",
            "type": "server_error",
            "param": None,
            "code": "WORKER_RESET",
            "pool_id": "p1",
        }
    }
    assert "[DONE]" not in got


def test_an_error_without_an_id_ends_the_stream_too() -> None:
    got = one_by_one(TOKENS[0], b'event: error\ndata: {"code":"INTERNAL","message":"gone"}\n\n')
    assert got[-1]["error"]["code"] == "INTERNAL"


def test_a_cancelled_answer_is_an_error_not_a_short_answer() -> None:
    got = one_by_one(TOKENS[0], end("cancelled"))
    assert (got[-1]["error"]["code"], "[DONE]" in got) == ("CANCELLED", False)
    chunks = Chunks(asked(), created=7)
    assert chunks.feed(STARTED + end("cancelled")) == b""
    assert chunks.error is not None
    assert chunks.error.code is ErrorCode.CANCELLED


def test_text_that_became_void_cannot_be_taken_back() -> None:
    restart = encode_metrics(Metrics(attempt=2, restarted_at=1))
    got = one_by_one(TOKENS[0], restart, *TOKENS[1:], end())
    assert got[-1]["error"]["code"] == "WORKER_RESET"
    whole = Whole(asked(), created=7)
    for frame in (TOKENS[0], restart, *TOKENS[1:], end()):
        whole.feed(frame)
    assert json.loads(whole.body())["choices"][0]["message"]["content"] == "".join(TEXTS[1:])


def test_a_goes_on_announcement_changes_nothing() -> None:
    goes_on = encode_metrics(Metrics(attempt=2, resume_from=1))
    assert said(one_by_one(TOKENS[0], goes_on, *TOKENS[1:], end())) == "".join(TEXTS)


@pytest.mark.parametrize("chat", [True, False])
def test_a_whole_answer(chat: bool) -> None:
    whole = Whole(asked(chat=chat), created=7)
    whole.feed(RETRY + STARTED + TOKENS[0])
    whole.feed(b":\n\n")
    whole.feed(b"".join(TOKENS[1:]) + end("length"))
    assert whole.over
    body = json.loads(whole.body())
    (choice,) = body["choices"]
    text = choice["message"]["content"] if chat else choice["text"]
    assert (text, choice["finish_reason"]) == ("".join(TEXTS), "length")
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    assert body["object"] == ("chat.completion" if chat else "text_completion")


@pytest.mark.parametrize(
    "text", ['","i":7}', '\\","i":7}\n\n', 'id: 1-2\nevent: token\ndata: {"t":"x","i":1}\n\n', '"', "\\"]
)
def test_a_text_that_looks_like_a_frame_is_a_text(text: str) -> None:
    frames = [encode_token(1, index, said) for index, said in enumerate(["a", text, "", text])]
    for pieces in (frames, [b"".join(frames)], [STARTED + frames[0], b"".join(frames[1:])]):
        got = one_by_one(*pieces, end())
        assert said(got) == f"a{text}{text}"
