"""Embeddings and rankings through the whole system with mock engines, by the official client and as tasks."""

import json
import os
import signal
from collections.abc import AsyncIterator
from typing import Any, Final

import httpx
import msgspec
import openai
import pytest

from llorch_poold.mock_results import nearness, vector_of
from llorch_shared.wire.registry import Capabilities
from llorch_shared.wire.task import TaskState
from support.client import Transcript
from support.processes import ports_of
from support.system import System, mock_pool

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

VECTORS: Final = mock_pool("vectors", replicas=2, slots=2, rate=50, model="mock:vectors", workloads=["embedding"])
RANKS: Final = mock_pool("ranks", replicas=1, slots=1, rate=0, model="mock:ranks", workloads=["rerank"])
TEXTS: Final = ["A cat sits here.", "A cat sits there.", "Rain fell on Tuesday."]
LONG: Final = [f"text number {number}" for number in range(100)]


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return ("asyncio", {"use_uvloop": True})


@pytest.fixture(scope="module")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    async with System(tmp_path_factory.mktemp("results"), pools=[VECTORS, RANKS]) as running:
        yield running


@pytest.fixture(scope="module")
async def client(system: System) -> AsyncIterator[openai.AsyncOpenAI]:
    base_url = f"{system.url()}/v1"
    async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=60) as opened:
        yield opened


def embedding(**changes: Any) -> dict[str, Any]:
    fields = {"workload": "embedding", "prompt": None, "inputs": LONG, "max_tokens": len(LONG)}
    return {**fields, "model_ref": VECTORS.model, **changes}


def vectors(transcript: Transcript) -> list[list[float]]:
    """Each result names the input that it is of."""
    results = [json.loads(token.t) for token in transcript.tokens]
    assert [result["index"] for result in results] == [token.i for token in transcript.tokens]
    return [result["embedding"] for result in results]


async def test_the_official_client_embeds_texts(client: openai.AsyncOpenAI) -> None:
    """It asks for base64 by itself, and gets the numbers that it gets as numbers."""
    packed = await client.embeddings.create(model=VECTORS.model, input=TEXTS)
    plain = await client.embeddings.create(model="vectors", input=TEXTS, encoding_format="float")
    assert [each.index for each in packed.data] == [0, 1, 2]
    assert [each.embedding for each in plain.data] == [vector_of(text) for text in TEXTS]
    for one, other in zip(packed.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, rel=1e-6)
    assert packed.usage.prompt_tokens == packed.usage.total_tokens == 12
    near, far = (nearness(plain.data[0].embedding, plain.data[number].embedding) for number in (1, 2))
    assert near > far
    single = await client.embeddings.create(model=VECTORS.model, input=TEXTS[0], extra_body={"llorch": {}})
    assert single.data[0].embedding == packed.data[0].embedding


async def test_what_cannot_be_embedded_is_said_in_the_clients_words(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as tokens:
        await client.embeddings.create(model=VECTORS.model, input=[[1, 2], [3]])
    assert (tokens.value.param, tokens.value.code) == ("input[0]", "INVALID_PARAMS")
    with pytest.raises(openai.BadRequestError, match="not served") as dimensions:
        await client.embeddings.create(model=VECTORS.model, input="a", dimensions=8)
    assert dimensions.value.param == "dimensions"
    with pytest.raises(openai.BadRequestError, match="does not serve the workload embedding"):
        await client.embeddings.create(model="ranks", input="a")
    with pytest.raises(openai.BadRequestError, match="input 1 does not fit"):
        await client.embeddings.create(model=VECTORS.model, input=["a", "word " * 9000])
    with pytest.raises(openai.BadRequestError, match="does not serve the workload completion"):
        await client.completions.create(model=VECTORS.model, prompt="a")


async def test_documents_are_ranked_for_a_query(system: System) -> None:
    wish = {"model": "ranks", "query": "where does a cat sit", "documents": [TEXTS[2], {"text": TEXTS[0]}, "a cat"]}
    http = system.client().http
    answer = (await http.post("/v1/rerank", json={**wish, "top_n": 2, "return_documents": True})).raise_for_status()
    ranking = answer.json()
    assert [each["index"] for each in ranking["results"]] == [2, 1]
    assert ranking["results"][1]["document"] == {"text": TEXTS[0]}
    assert ranking["results"][0]["relevance_score"] == pytest.approx(
        nearness(vector_of(str(wish["query"])), vector_of("a cat")), rel=1e-6
    )
    task = await system.client().get(answer.headers["x-llorch-task-id"])
    assert (task.state, task.tokens_out, task.tokens_in) == (TaskState.DONE, 3, ranking["usage"]["prompt_tokens"])
    refused = await http.post("/v1/rerank", json={**wish, "model": VECTORS.model})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "model")


async def test_documents_that_no_bus_message_holds_are_ranked(system: System) -> None:
    """They go by reference, and their query with them."""
    documents = [f"{number} " + "a-word-of-some-length " * 20 + "x" * 25_000 for number in range(40)]
    wish = {"model": "ranks", "query": "0", "documents": documents, "top_n": 1}
    answer = (await system.client().http.post("/v1/rerank", json=wish, timeout=60)).raise_for_status()
    (best,) = answer.json()["results"]
    scores = [nearness(vector_of("0"), vector_of(text)) for text in documents]
    assert best["relevance_score"] == pytest.approx(max(scores), rel=1e-6)


async def test_results_come_one_by_one_and_a_cancel_ends_them(system: System) -> None:
    inputs = LONG * 20
    task_id = (await system.client().submit(**embedding(inputs=inputs, max_tokens=len(inputs)))).task_id
    transcript = await system.client().read(task_id, tokens_max=3)
    assert await system.client().cancel(task_id) in (204, 202)
    await system.client().read(task_id, into=transcript)
    assert transcript.end is not None
    assert transcript.end.finish_reason == "cancelled"
    assert len(transcript.tokens) <= transcript.end.tokens_out < len(inputs), "what came after the wish is not shown"
    assert vectors(transcript) == [vector_of(text) for text in inputs[: len(transcript.tokens)]]


async def lost_its_engine(system: System) -> Transcript:
    """A task with a few results, whose engine was killed while it made more. Between two of them an engine is idle for
    a moment; a task that is through before it is seen busy is followed by another."""
    engines = {f"http://127.0.0.1:{port}": pid for pid in system.engines_of("poold-1") for port in ports_of(pid)}
    async with httpx.AsyncClient() as http:
        for _ in range(10):
            task_id = (await system.client().submit(**embedding())).task_id
            transcript = await system.client().read(task_id, tokens_max=3)
            while (await system.client().get(task_id)).state is TaskState.RUNNING:
                for url, pid in engines.items():
                    if any(slot["is_processing"] for slot in (await http.get(f"{url}/slots")).json()):
                        os.kill(pid, signal.SIGKILL)
                        return transcript
    raise AssertionError("no engine is busy while its task runs")


async def test_a_killed_engine_costs_no_result_and_doubles_none(system: System) -> None:
    transcript = await lost_its_engine(system)
    await system.client().read(transcript.task_id, into=transcript)
    transcript.check()
    assert transcript.error is None, transcript.error
    assert transcript.end is not None
    assert (transcript.end.finish_reason, transcript.end.tokens_in) == ("stop", 3 * len(LONG))
    assert vectors(transcript) == [vector_of(text) for text in LONG]
    view = await system.client().get(transcript.task_id)
    assert (view.state, view.attempt) == (TaskState.DONE, 2)
    assert [each.resume_from for each in transcript.metrics if each.resume_from is not None] != []


async def test_capabilities_say_which_workloads_are_served(system: System) -> None:
    await system.replicas_ready("vectors", 2)
    answer = (await system.client().http.get("/v1/capabilities")).raise_for_status()
    (engine,) = msgspec.json.decode(answer.content, type=Capabilities).engines
    assert engine.supported_workloads == ("embedding", "rerank")
    assert {pool.pool_id: pool.workloads for pool in engine.pools} == {"vectors": ("embedding",), "ranks": ("rerank",)}
    listed = (await system.client().http.get("/v1/models")).json()["data"]
    assert {each["id"]: each["workloads"] for each in listed} == {
        "mock:vectors": ["embedding"],
        "mock:ranks": ["rerank"],
    }
