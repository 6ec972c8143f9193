"""Chats with tools and log-probabilities: what an engine is asked, and what of its answer tokens carry."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from llorch_poold.adapters.llamacpp import LlamaCpp, completion_body
from llorch_poold.adapters.port import Finish
from llorch_poold.mock_chat import arguments_of
from llorch_poold.mock_text import Turn, chatml, digest, text_of
from llorch_shared.errors import RESET_DETAILS, ResetDetail
from poold.engines import HEAD, Collected, call, mock_engine, read_request, scripted
from poold.test_failover import again, until_lost
from support.nats_server import NatsServer
from support.node_harness import NodeHarness, mock_pool

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"name": "get_weather", "description": "Weather of a city", "parameters": PARAMETERS}
OFFER = {"type": "function", "function": TOOL}
ASK = {"role": "user", "content": "The weather in Paris?"}
WISH: dict[str, Any] = {"prompt": None, "messages": [ASK], "tools": [TOOL], "max_tokens": 40}
PROMPT = chatml([Turn(**ASK)], [OFFER])
CALLED = {**WISH, "tool_choice": "required"}


def calls_of(more: list[bytes]) -> list[dict[str, Any]]:
    return [delta for each in more if each for delta in json.loads(b"{" + each[1:] + b"}")["tool_calls"]]


def arguments(deltas: list[dict[str, Any]]) -> str:
    return "".join(delta["function"]["arguments"] for delta in deltas)


def test_a_task_with_tools_is_asked_as_a_chat() -> None:
    said = json.loads(completion_body(call(**CALLED, parallel_tool_calls=False, sampling={"stop": ["END"]})))
    assert "prompt" not in said
    assert "n_predict" not in said
    assert said["messages"] == [ASK]
    assert said["tools"] == [OFFER]
    assert (said["tool_choice"], said["parallel_tool_calls"], said["max_tokens"]) == ("required", False, 40)
    assert (said["stream"], said["stop"], said["id_slot"]) == (True, ["END"], 0)
    assert said["timings_per_token"], "else nothing tells which token a frame belongs to"
    answered = {"role": "tool", "content": "sunny", "tool_call_id": "c1"}
    made = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
    turns = [ASK, {"role": "assistant", "content": "", "tool_calls": [made]}, answered]
    assert json.loads(completion_body(call(**{**WISH, "messages": turns})))["messages"] == turns


async def test_each_token_of_a_call_is_a_token_and_carries_what_it_adds() -> None:
    async with mock_engine("--rate", "0") as (adapter, _):
        sink = Collected()
        adapter.submit(call(**CALLED), sink)
        await sink.over()
        plain = Collected()
        adapter.submit(call(**WISH), plain)
        await plain.over()
    word = digest(PROMPT, 7)
    deltas = calls_of(sink.more)
    assert deltas[0]["id"] == f"call_{word}"
    assert deltas[0]["function"]["name"] == "get_weather"
    assert arguments(deltas) == arguments_of(OFFER, word) == f'{{"city": "{word}"}}'
    assert sink.finish is not None
    assert sink.finish.reason == "tool_calls"
    assert sink.texts == [""] * sink.finish.tokens_out
    assert sink.tokens_in == sink.finish.tokens_in == len(PROMPT.split())
    assert plain.finish == Finish("length", len(PROMPT.split()), 40)
    assert plain.text == text_of(PROMPT, 7, 40), "it called nothing: nobody asked it to"


FRAMES = (
    b'{"choices":[{"finish_reason":null,"index":0,"delta":{"role":"assistant","content":null}}],"timings":{"predicted_n":1}}',
    b'{"choices":[{"finish_reason":null,"index":0,"delta":{"content":"I"}}],"timings":{"predicted_n":2}}',
    b'{"choices":[{"finish_reason":null,"index":0,"delta":{"tool_calls":[{"index":0,"id":"a","type":"function",'
    b'"function":{"name":"f","arguments":"{"}}]}}],"timings":{"predicted_n":8}}',
    b'{"choices":[{"finish_reason":null,"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"}"}}]}}],'
    b'"timings":{"predicted_n":8}}',
    b'{"choices":[{"finish_reason":"tool_calls","index":0,"delta":{}}]}',
    b'{"choices":[],"usage":{"completion_tokens":10,"prompt_tokens":3,"total_tokens":13}}',
    b"[DONE]",
)


async def answered_with(*frames: bytes, **wish: Any) -> Collected:
    """Each frame in a read of its own, as far as the network allows."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(HEAD)
        for frame in frames:
            event = b"data: " + frame + b"\n\n"
            writer.write(b"%x\r\n%b\r\n" % (len(event), event))
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    async with scripted(serve) as http:
        sink = Collected()
        LlamaCpp(http).submit(call(**CALLED, **wish), sink)
        return await sink.over()


async def test_frames_that_speak_of_one_token_are_one_token() -> None:
    sink = await answered_with(*FRAMES)
    assert sink.finish == Finish("tool_calls", 3, 10)
    assert sink.texts == ["", "I", *[""] * 8]
    assert [number for number, more in enumerate(sink.more, 1) if more] == [8]
    assert arguments(calls_of(sink.more)) == "{}"


@pytest.mark.parametrize(
    "frames",
    [
        FRAMES[:-2],
        (*FRAMES[:-3], *FRAMES[-2:]),
        (FRAMES[2], FRAMES[1]),
        (*FRAMES[:5], b'{"choices":[],"usage":{"completion_tokens":7,"prompt_tokens":3}}'),
        (b'{"choices":[{"delta":{"content":"x"}}]}',),
        (b'{"choices":[{"delta":{"content":"x"}}],"timings":{"predicted_n":1000}}',),
        (*FRAMES[:5], b"[DONE]"),
        (b"{}x",),
        (FRAMES[1], b'{"error":{"message":"no","type":"server_error"}}'),
    ],
    ids=["cut", "unfinished", "backwards", "miscounted", "uncounted", "too many", "countless", "garbage", "error"],
)
async def test_a_chat_that_does_not_add_up_is_a_failure(frames: tuple[bytes, ...]) -> None:
    sink = await answered_with(*frames)
    assert sink.finish is None
    assert sink.failure is not None


async def test_log_probabilities_of_a_chat_with_tools_are_those_of_its_text() -> None:
    """As recorded: every frame has those of its token, the ones of markup among them."""
    weight = b',"logprobs":{"content":[{"id":1,"token":"%b","bytes":[73],"logprob":-0.5,"top_logprobs":[%b]}]}'
    top = b'{"id":1,"token":"I","bytes":[73],"logprob":-0.5},{"id":2,"token":"x","bytes":[120],"logprob":-1.5}'
    frames = [
        frame.replace(b',"delta"', weight % (b"I" if b'"I"' in frame else b"{", top) + b',"delta"') for frame in FRAMES
    ]
    sink = await answered_with(*frames, top_logprobs=1)
    assert sink.finish == Finish("tool_calls", 3, 10)
    told = {number: json.loads(b"{" + more[1:] + b"}") for number, more in enumerate(sink.more, 1) if more}
    kept = {"token": "I", "logprob": -0.5, "bytes": [73]}
    assert told[2] == {"logprobs": {**kept, "top_logprobs": [kept]}}
    assert list(told) == [2, 8]
    assert list(told[8]) == ["tool_calls"]
    assert not any(b"logprobs" in more for more in (await answered_with(*frames)).more), "nobody asked"
    assert json.loads(completion_body(call(**WISH, top_logprobs=0)))["n_probs"] == 1
    async with mock_engine("--rate", "0") as (adapter, _):
        said, called = Collected(), Collected()
        adapter.submit(call(**WISH, top_logprobs=2), said)
        adapter.submit(call(**CALLED, top_logprobs=2), called)
        await said.over()
        await called.over()
    weights = [json.loads(b"{" + more[1:] + b"}")["logprobs"] for more in said.more]
    assert "".join(each["token"] for each in weights) == said.text
    assert not any(b"logprobs" in more for more in called.more)


async def test_log_probabilities_come_only_when_asked_for() -> None:
    async with mock_engine("--rate", "0") as (adapter, _):
        weighed, bare, plain = Collected(), Collected(), Collected()
        for sink, top in ((weighed, 2), (bare, 0), (plain, None)):
            adapter.submit(call(max_tokens=3, top_logprobs=top), sink)
            await sink.over()
    assert weighed.texts == bare.texts == plain.texts
    told = [json.loads(b"{" + each[1:] + b"}")["logprobs"] for each in weighed.more]
    assert [each["token"] for each in told] == weighed.texts
    assert [[top["logprob"] for top in each["top_logprobs"]] for each in told] == [[0.0, -0.5]] * 3
    assert all(b'"top_logprobs":[]' in each for each in bare.more)
    assert not plain.more


@pytest.mark.nats
async def test_a_stream_with_tools_is_run_again_or_refused_and_never_goes_on(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=200)]) as node:
        assert "tools" in (await node.ready()).features
        task = await node.until_ended(await node.place(**CALLED, seed=3))
        deltas = [delta for token in task.tokens for delta in token.get("tool_calls", ())]
        assert arguments(deltas) == arguments_of(OFFER, digest(PROMPT, 3))
        (end,) = task.data("end")
        assert (end["finish_reason"], end["tokens_out"]) == ("tool_calls", len(task.tokens))
        assert (await node.run_of(task.task_id))[0].finish_reason == "tool_calls"
        await node.fault(kind="reset", after=6, times=1)
        broken = await node.place(**WISH, seed=3)
        await node.until_tokens(broken, 4)
        await until_lost(node)
        refused = await again(node, broken)
        (error,) = refused.data("error")
        assert (error["code"], error["detail"]) == ("WORKER_RESET", ResetDetail.FAILOVER_REFUSED)
        assert RESET_DETAILS[ResetDetail.FAILOVER_REFUSED] in error["message"]


@pytest.mark.nats
async def test_tools_for_a_template_that_takes_none_are_refused(nats_server: NatsServer, tmp_path: Path) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(env={"LLORCH_MOCK_TOOLS": "0"})]) as node:
        assert "tools" not in (await node.ready()).features
        task = await node.until_ended(await node.place(**CALLED))
        (error,) = task.data("error")
        assert error["code"] == "INVALID_PARAMS"
        assert "takes no tools" in error["message"]
