"""Chats, sampling, stop words and schemas: what a node asks its engine for, and what it refuses to ask."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from llorch_poold.adapters.llamacpp import LlamaCpp, completion_body
from llorch_poold.adapters.port import EngineBroke, Finish, GenerationCall, RequestRejected
from llorch_poold.mock_text import Turn, chatml, cut_at, text_of
from llorch_poold.self_test import renders_chats
from llorch_shared.wire.task import ChatMessage, ChatRole, TaskState
from poold.engines import Collected, mock_engine, read_request, scripted
from poold.test_failover import again, cut
from support.nats_server import NatsServer
from support.node_harness import NodeHarness, mock_pool, task_request

CHAT = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say\nsomething."})
PROMPT = chatml([Turn(**turn) for turn in CHAT])
MESSAGES = [ChatMessage(role=ChatRole.USER, content="Hi")]


def body(**changes: object) -> dict[str, object]:
    call = GenerationCall(request=task_request(**changes), seed=5, slot=0, correlation_id="-")
    made: dict[str, object] = json.loads(completion_body(call))
    return made


def test_what_a_task_says_of_its_sampling_replaces_the_profile_and_nothing_else() -> None:
    plain = body()
    said = body(sampling={"temperature": 0, "top_k": 0, "presence_penalty": -0.5, "stop": ["\n", "END"]})
    assert said == {**plain, "temperature": 0.0, "top_k": 0, "presence_penalty": -0.5, "stop": ["\n", "END"]}
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert body(response_schema=schema, output_mode="json") == {**plain, "json_schema": schema}


@pytest.mark.parametrize(
    ("stops", "tokens", "text"),
    [
        ((" w3",), ["", " w1", " w2", ""], " w1 w2"),
        (("w3",), ["", " w1", " w2", " "], " w1 w2 "),
        (("3 w4", "w5"), ["", " w1", " w2", " w", ""], " w1 w2 w"),
        (("never",), None, ""),
    ],
)
def test_the_mock_engine_ends_before_a_stop_word(stops: Sequence[str], tokens: list[str] | None, text: str) -> None:
    whole = text_of("p", 1, 8)
    cut = cut_at(whole, stops)
    if tokens is None:
        assert cut is None
        return
    first = whole[1:].split(" ")[0]
    assert cut is not None
    assert cut == [f" {first}", *tokens[1:]]
    assert "".join(cut) == f" {first}{text}"


async def test_a_generation_ends_at_a_stop_word_with_the_engines_count() -> None:
    async with mock_engine("--rate", "0") as (adapter, _):
        sink = Collected()
        request = task_request(max_tokens=20, sampling={"stop": ["w3"]})
        adapter.submit(GenerationCall(request=request, seed=1, slot=0, correlation_id="-"), sink)
        await sink.over()
    assert sink.text == f"{text_of('Say something.', 1, 3)} "
    assert sink.finish == Finish("stop", 2, 4, "w3")


@pytest.mark.parametrize(
    ("status", "answer", "kind"),
    [
        (
            400,
            b'{"error":{"code":400,"message":"roles","type":"invalid_request_error"}}',
            RequestRejected,
        ),
        (501, b'{"error":{"code":501,"message":"no","type":"not_supported_error"}}', RequestRejected),
        (503, b'{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}', EngineBroke),
        (200, b"{}", EngineBroke),
        (200, b"\xff", EngineBroke),
    ],
)
async def test_a_template_that_refuses_is_told_from_a_broken_engine(
    status: int, answer: bytes, kind: type[Exception]
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(answer), answer))

    async with scripted(serve) as http:
        with pytest.raises(kind):
            await LlamaCpp(http).render_chat(MESSAGES)


async def test_whether_an_engine_takes_chats_is_tried() -> None:
    async with mock_engine("--no-chat-template") as (adapter, _):
        assert not await renders_chats(adapter)


@pytest.mark.nats
async def test_a_chat_is_rendered_by_the_engine_and_goes_on_behind_its_own_prompt(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=200)]) as node:
        ready = await node.ready()
        assert "chat_template" in ready.features
        asked = {"prompt": None, "messages": CHAT, "max_tokens": 12, "seed": 3, "sampling": {"temperature": 1}}
        task = await again(node, await cut(node, 5, **asked))
        begun = text_of(PROMPT, 3, 5)
        assert task.text == begun + text_of(PROMPT + begun, 3, 7)
        (end,) = task.data("end")
        assert (end["tokens_in"], end["tokens_out"]) == (len(PROMPT.split()), 12)


@pytest.mark.nats
async def test_a_chat_for_an_engine_without_a_template_is_refused_before_it_runs(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    pool = mock_pool(env={"LLORCH_MOCK_CHAT_TEMPLATE": "0"})
    async with NodeHarness(nats_server, tmp_path, pools=[pool]) as node:
        ready = await node.ready()
        assert "chat_template" not in ready.features
        chat = await node.until_ended(await node.place(prompt=None, messages=CHAT))
        assert [event.event for event in chat.events] == ["error"]
        (error,) = chat.data("error")
        assert error["code"] == "INVALID_PARAMS"
        assert "no chat template" in error["message"]
        assert (await node.run_of(chat.task_id))[0].state is TaskState.FAILED
        assert (await node.until_ended(await node.place())).data("end")
