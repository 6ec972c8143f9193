"""Embeddings and scores: answers as recorded from the real server, garbage in their place, whole tasks on a node."""

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llorch_poold.adapters.llama_results import ANSWER_BYTES_MAX
from llorch_poold.adapters.llamacpp import LlamaCpp
from llorch_poold.adapters.port import EngineBroke, EngineBusy, EngineFailure, Finish, RequestRejected
from llorch_poold.core.results import embedding_text, score_text, tokens_read
from llorch_poold.mock_results import nearness, vector_of
from llorch_poold.self_test import wait_slot_free
from llorch_shared.wire.task import TaskState
from poold.engines import Collected, call, mock_engine, read_request, scripted, set_fault
from support.nats_server import NatsServer
from support.node_harness import NodeHarness, mock_pool

MODEL = "/models/SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDED = {
    "model": MODEL,
    "object": "list",
    "usage": {"prompt_tokens": 2, "total_tokens": 2},
    "data": [
        {
            "embedding": [-0.02043287828564644, -0.010164015926420689, 0.0001113925172830931],
            "index": 0,
            "object": "embedding",
        }
    ],
}
RANKED = {
    "model": MODEL,
    "object": "list",
    "usage": {"prompt_tokens": 2, "total_tokens": 2},
    "results": [{"index": 0, "relevance_score": -0.8976449370384216}],
}
TOO_LONG = {
    "error": {
        "code": 400,
        "message": "request (1002 tokens) exceeds the available context size (512 tokens), try increasing it",
        "type": "exceed_context_size_error",
        "n_prompt_tokens": 1002,
        "n_ctx": 512,
    }
}
OVER_THE_BATCH = {
    "error": {
        "code": 500,
        "message": "input (101 tokens) is too large to process. increase the physical batch size",
        "type": "server_error",
    }
}
NO_SLOT = {"error": {"code": 503, "message": "no slot available", "type": "unavailable_error"}}
OFF = {
    "error": {
        "code": 501,
        "message": "This server does not support reranking. Start it with `--reranking`",
        "type": "not_supported_error",
    }
}
INPUTS = {"prompt": None, "inputs": ["Where is the cat?", "A cat is here.", "Rain."], "max_tokens": 3}
EMBED = {**INPUTS, "workload": "embedding"}
RERANK = {**INPUTS, "workload": "rerank", "prompt": "cat"}


def reply(body: object, status: str = "200 OK", kind: str = "application/json; charset=utf-8") -> bytes:
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


async def collect(*answers: bytes, first: int = 0, **changes: Any) -> tuple[Collected, list[tuple[str, Any]]]:
    """What the adapter makes of these answers to its calls, and the calls: path and body."""
    asked: list[tuple[str, Any]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, body = await read_request(reader)
            asked.append((head.split(b" ")[1].decode(), json.loads(body)))
            writer.write(answers[len(asked) - 1])
            if len(asked) == len(answers):
                await writer.drain()
                writer.write_eof()

    async with scripted(serve) as http:
        sink = Collected()
        adapter = LlamaCpp(http)
        adapter.submit(dataclasses.replace(call(**changes), first=first), sink)
        return await sink.over(), asked


async def test_each_input_is_asked_for_and_gives_one_result() -> None:
    sink, asked = await collect(reply(EMBEDDED), reply(EMBEDDED), reply(EMBEDDED), **EMBED)
    assert [json.loads(text)["index"] for text in sink.texts] == [0, 1, 2]
    assert json.loads(sink.texts[0])["embedding"] == [-0.0204328783, -0.0101640159, 0.000111392517]
    assert sink.reads == [1, 1, 1]
    assert (sink.began, sink.tokens_in, sink.finish) == (1, 6, Finish("stop", 6, 3))
    assert [path for path, _ in asked] == ["/v1/embeddings"] * 3
    assert [body["input"] for _, body in asked] == INPUTS["inputs"]
    assert asked[0][1]["id_slot"] == 0


async def test_documents_are_ranked_one_by_one_for_the_query() -> None:
    sink, asked = await collect(reply(RANKED), reply(RANKED), reply(RANKED), **RERANK)
    assert json.loads(sink.texts[2]) == {"index": 2, "relevance_score": -0.897644937, "tokens_in": 2}
    assert [path for path, _ in asked] == ["/v1/rerank"] * 3
    assert [(body["query"], body["documents"]) for _, body in asked] == [("cat", [text]) for text in INPUTS["inputs"]]


async def test_a_later_attempt_asks_for_the_inputs_that_are_left() -> None:
    sink, asked = await collect(reply(EMBEDDED), first=2, **EMBED)
    assert [body["input"] for _, body in asked] == ["Rain."]
    assert json.loads(sink.texts[0])["index"] == 2
    assert sink.finish == Finish("stop", 2, 1)
    assert tokens_read([embedding_text(0, [1.0], 7), score_text(1, 0.5, 4), "no result"]) == 11


def embedded(**changes: Any) -> dict[str, Any]:
    return {**EMBEDDED, **changes}


def vector(*numbers: Any, index: int = 0) -> list[dict[str, Any]]:
    return [{"embedding": list(numbers), "index": index, "object": "embedding"}]


@pytest.mark.parametrize(
    ("answer", "failure", "says"),
    [
        (reply(b"<html>", kind="text/html"), EngineBroke, "is no result"),
        (reply(b'{"data":[{"embedding":[\xff'), EngineBroke, "is no result"),
        (reply(b'{"data":[{"embedding":[1,NaN],"index":0}],"usage":{"prompt_tokens":1}}'), EngineBroke, "is no result"),
        (reply(embedded(data=vector(0.5, None))), EngineBroke, "is no result"),
        (
            reply(b'{"data":[{"embedding":[1e999],"index":0}],"usage":{"prompt_tokens":1}}'),
            EngineBroke,
            "result|fin",
        ),
        (reply(embedded(data=[])), EngineBroke, "not the one vector"),
        (reply(embedded(data=vector(0.5) + vector(0.5, index=1))), EngineBroke, "not the one vector"),
        (reply(embedded(data=vector(0.5, index=1))), EngineBroke, "not the one vector"),
        (reply(embedded(data=vector())), EngineBroke, "a vector of 0 numbers"),
        (reply(embedded(data=vector(*[0.5] * 40_000))), EngineBroke, "a vector of 40000 numbers"),
        (reply({"data": vector(0.5)}), EngineBroke, "is no result"),
        (reply(embedded(usage={"prompt_tokens": -1})), EngineBroke, "counts -1 tokens"),
        (reply(embedded(usage={"prompt_tokens": 4096})), RequestRejected, "input 0 has 4096 tokens, the task's ctx"),
        (reply(b"x" * (ANSWER_BYTES_MAX + 1)), EngineBroke, "over 4194304 bytes"),
        (reply(TOO_LONG, "400 Bad Request"), RequestRejected, "input 0 does not fit the pool's context"),
        (reply(OVER_THE_BATCH, "500 Internal Server Error"), RequestRejected, "input 0 does not fit"),
        (reply(NO_SLOT, "503 Service Unavailable"), EngineBusy, "no slot"),
        (reply(OFF, "501 Not Implemented"), EngineBroke, "does not support"),
        (reply(TOO_LONG), RequestRejected, "tokens"),
        (reply(b"", "502 Bad Gateway"), EngineBroke, "HTTP 502"),
        (reply(EMBEDDED)[:-9], EngineBroke, "closed the connection"),
        (b"SSH-2.0-OpenSSH\r\n", EngineBroke, "does not speak HTTP"),
    ],
)
async def test_what_is_no_result_is_a_failure_with_its_cause(
    answer: bytes, failure: type[EngineFailure], says: str
) -> None:
    sink, _ = await collect(answer, **EMBED)
    assert type(sink.failure) is failure or (failure is RequestRejected and isinstance(sink.failure, RequestRejected))
    with pytest.raises(failure, match=says):
        raise sink.failure or AssertionError
    assert sink.texts == []
    assert sink.began == 0, "nothing of it was believed"


@pytest.mark.parametrize(
    "results", [[], [{"index": 1, "relevance_score": 0.5}], [{"index": 0, "relevance_score": None}], [{"index": 0}]]
)
async def test_a_document_without_its_score_is_a_failure(results: list[Any]) -> None:
    sink, _ = await collect(reply({**RANKED, "results": results}), **RERANK)
    assert isinstance(sink.failure, EngineBroke)


async def test_a_vector_of_another_length_is_a_failure_and_the_ones_before_it_stand() -> None:
    sink, _ = await collect(reply(EMBEDDED), reply(embedded(data=vector(0.5))), **EMBED)
    assert len(sink.texts) == 1
    with pytest.raises(EngineBroke, match="a vector of 1 numbers after one of 3"):
        raise sink.failure or AssertionError


@asynccontextmanager
async def engine(*flags: str) -> AsyncIterator[tuple[LlamaCpp, Any]]:
    async with mock_engine("--rate", "0", *flags) as (adapter, http):
        yield adapter, http


async def test_the_mock_engine_says_the_same_and_nears_what_shares_words() -> None:
    async with engine() as (adapter, _):
        sink = Collected()
        adapter.submit(call(**EMBED), sink)
        await sink.over()
        vectors = [json.loads(text)["embedding"] for text in sink.texts]
        assert vectors == [vector_of(str(text)) for text in INPUTS["inputs"]]  # type: ignore[union-attr]
        assert nearness(vector_of("a cat is here"), vector_of("a cat is there")) > 0.5
        assert nearness(vector_of("a cat is here"), vector_of("rain tomorrow")) < 0.4
        ranked = Collected()
        adapter.submit(call(**RERANK), ranked)
        await ranked.over()
        assert ranked.finish is not None
        assert [json.loads(text)["index"] for text in ranked.texts] == [0, 1, 2]


async def test_a_cancelled_call_keeps_its_slot_until_its_answer_has_come() -> None:
    """Its socket stays open: llama-server would work on unheard, and the slot would only look free."""
    async with engine("--prefill-ms", "300") as (adapter, _):
        sink = Collected()
        generation = adapter.submit(call(**EMBED), sink)
        generation.abort()
        assert not await adapter.slot_free(0)
        await wait_slot_free(adapter, 0, 10)
        assert sink.texts == []
        assert sink.finish is sink.failure is None
        again = Collected()
        adapter.submit(call(**EMBED), again)
        assert (await again.over()).finish is not None, "the slot is really free"


@pytest.mark.parametrize("kind", ["garbage", "utf8", "gap", "miscount", "nan", "fail", "error", "page"])
async def test_whatever_the_mock_engine_does_wrong_is_named(kind: str) -> None:
    async with engine() as (adapter, http):
        await set_fault(http, kind=kind, after=1, times=1)
        sink = Collected()
        adapter.submit(call(**EMBED), sink)
        await sink.over()
        assert isinstance(sink.failure, EngineBroke)
        assert len(sink.texts) == 1, "the first was good"


async def until_given_back(node: NodeHarness, task_id: str) -> None:
    async with asyncio.timeout(15):
        while (await node.run_of(task_id))[0].state is not TaskState.PLACED:
            await asyncio.sleep(0.01)


POOL = mock_pool(rate=0, workloads=["completion", "embedding"])


@pytest.mark.nats
async def test_a_lost_task_goes_on_with_the_input_behind_those_that_were_sent(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """And its counts are those of the whole task, although two engines read its inputs."""
    async with NodeHarness(nats_server, tmp_path, pools=[POOL]) as node:
        ready = await node.ready()
        assert ready.workloads == POOL.serves
        await node.fault(kind="nan", after=1, times=1)
        task = await node.place(**EMBED)
        await node.until_tokens(task, 1)
        await until_given_back(node, task.task_id)
        task = await node.until_ended(await node.resume(task))
        assert [json.loads(token["t"])["index"] for token in task.tokens] == [0, 1, 2]
        assert [token["i"] for token in task.tokens] == [0, 1, 2]
        (end,) = task.data("end")
        assert (end["finish_reason"], end["tokens_out"], end["tokens_in"]) == ("stop", 3, 9)
        run, _ = await node.run_of(task.task_id)
        assert (run.state, run.tokens_in, run.tokens_out) == (TaskState.DONE, 9, 3)


@pytest.mark.nats
async def test_a_cancelled_embedding_ends_when_its_engine_has_let_go(nats_server: NatsServer, tmp_path: Path) -> None:
    """Also an engine that never answers: it is killed, and the cancel has its receipt."""
    pool = mock_pool(rate=0, workloads=["embedding"], timeouts={"idle_ms": 1_500})
    async with NodeHarness(nats_server, tmp_path, pools=[pool]) as node:
        ready = await node.ready()
        await node.fault(kind="hang", after=1, times=1)
        task = await node.place(**EMBED)
        await node.until_tokens(task, 1)
        await node.cancel(task.task_id)
        await node.until_ended(task)
        (end,) = task.data("end")
        assert (end["finish_reason"], end["tokens_out"]) == ("cancelled", 1)
        again = await node.ready(other_than=ready.incarnation)
        assert again.workloads == ("embedding",)
        done = await node.until_ended(await node.place(**EMBED))
        assert len(done.tokens) == 3


@pytest.mark.nats
async def test_an_input_over_the_context_ends_its_task_for_good(nats_server: NatsServer, tmp_path: Path) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[POOL]) as node:
        await node.ready()
        inputs = ["short", "word " * 3000]
        task = await node.until_ended(await node.place(**{**EMBED, "inputs": inputs}))
        (error,) = task.data("error")
        assert (error["code"], error.get("retriable", False)) == ("INVALID_PARAMS", False)
        assert "input 1 does not fit" in error["message"]
