"""Embeddings and rankings: requests as tasks, what is refused by its name, and streams as one answer."""

import base64
import json
import struct
from typing import Any

import msgspec
import pytest

from llorch_gateway.answer_room import AnswerRoom
from llorch_gateway.openai.core import models
from llorch_gateway.openai.core.errors import ParamError
from llorch_gateway.openai.core.results import AskedResults, Results, Scores, Vectors, read_embedding, read_rerank
from llorch_poold.core.results import embedding_text, score_text
from llorch_shared.errors import ErrorBody, ErrorCode, OrchError
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
from llorch_shared.wire.task import INPUTS_MAX, Priority, Workload
from support.bus_worlds import eventually
from support.gateways import cluster_of, pool_spec, replica

MIB = 1024 * 1024
NEW_ID = "00000000-0000-4000-8000-000000000001"
POOLS = {
    pool.id: pool
    for pool in (
        pool_spec("chat", ctx=8192),
        pool_spec("vectors", workloads=["embedding"]),
        pool_spec("ranks", model="mock:ranks", workloads=["rerank"]),
    )
}
REPLICAS = {name: [replica(name, workloads=pool.serves)] for name, pool in POOLS.items()}
VECTORS = [[0.25, -0.020432878, 1e-09], [1.0, 0.0, -3.5e10]]
STARTED = encode_started(Started(queue_position=0, predicted_start_ms=0))
FACTS = encode_metrics(Metrics(queue_depth=1))


def embed(headers: dict[bytes, bytes] | None = None, **fields: Any) -> AskedResults:
    body = msgspec.json.encode({"model": "mock:words", "input": ["a", "b"], **fields})
    return checked(read_embedding(body, headers or {}, new_id=NEW_ID, pools=POOLS, replicas=REPLICAS))


def rerank(**fields: Any) -> AskedResults:
    body = msgspec.json.encode({"model": "mock:ranks", "query": "q", "documents": ["x", {"text": "y"}, "z"], **fields})
    return checked(read_rerank(body, {}, new_id=NEW_ID, pools=POOLS, replicas=REPLICAS))


def checked(asked: AskedResults) -> AskedResults:
    check_request(asked.task)
    return asked


def test_texts_are_an_embedding_task_of_a_pool_that_serves_it() -> None:
    task = embed().task
    assert (task.workload, task.inputs, task.prompt, task.max_tokens) == (Workload.EMBEDDING, ("a", "b"), None, 2)
    assert task.ctx == 4096, "the pool with the larger context serves completions alone"
    assert embed(input="a").task.inputs == ("a",)
    pinned = embed(model="vectors").task.placement
    assert pinned is not None
    assert pinned.pin_pool_id == "vectors"
    batch = embed({b"x-llorch-priority": b"batch"}, llorch={"deadline_ms": 5}).task
    assert (batch.priority, batch.deadline_ms) == (Priority.BATCH, 5)


def test_a_query_and_its_documents_are_a_rerank_task() -> None:
    task = rerank().task
    assert (task.workload, task.prompt, task.inputs, task.max_tokens) == (Workload.RERANK, "q", ("x", "y", "z"), 3)


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"input": [1, 2, 3]}, "input[0]", "Expected `str`"),
        ({"input": [[1, 2]]}, "input[0]", "Expected `str`"),
        ({"input": 5}, "input", "Expected `str | array`"),
        ({"input": []}, "input", "needs inputs"),
        ({"input": ""}, "input", "no empty text"),
        ({"input": ["a"] * (INPUTS_MAX + 1)}, "input", "at most 2048"),
        ({"dimensions": 64}, "dimensions", "not served"),
        ({"encoding_format": "int8"}, "encoding_format", "Invalid enum value"),
        ({"colour": 1}, "colour", "unknown field"),
        ({"model": "chat"}, "model", "does not serve the workload embedding"),
        ({"model": "mock:ranks"}, "model", "does not serve the workload embedding"),
        ({"model": "nobody's"}, "model", "no pool serves"),
    ],
)
def test_an_embedding_that_cannot_be_made_is_refused_by_name(fields: dict[str, Any], param: str, says: str) -> None:
    with pytest.raises(ParamError, match=says) as refused:
        embed(**fields)
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"query": ""}, "query"),
        ({"documents": []}, "documents"),
        ({"documents": ["x", ""]}, "documents"),
        ({"documents": [{"title": "x"}]}, "documents[0].text"),
        ({"top_n": 0}, "top_n"),
        ({"rank_fields": ["title"]}, "rank_fields"),
        ({"max_chunks_per_doc": 2}, "max_chunks_per_doc"),
        ({"model": "vectors"}, "model"),
    ],
)
def test_a_ranking_that_cannot_be_made_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ParamError) as refused:
        rerank(**fields)
    assert refused.value.param == param


def test_a_model_says_which_workloads_its_pools_serve() -> None:
    both, ranks = models.listed(POOLS, REPLICAS).data[1], models.one("ranks", POOLS, REPLICAS)
    assert (both.id, both.workloads) == ("mock:words", (Workload.COMPLETION, Workload.EMBEDDING))
    assert (ranks.id, ranks.workloads) == ("mock:ranks", (Workload.RERANK,))
    with pytest.raises(ParamError, match="does not serve the workload completion"):
        models.chosen("mock:ranks", POOLS, REPLICAS)


def end(count: int, reason: str = "stop") -> bytes:
    return encode_end(1, End(tokens_out=count, decode_ms=1, decode_time_ms=1, finish_reason=reason, tokens_in=7))


def fed(answer: Results, *frames: bytes) -> Results:
    for data in frames:
        answer.feed(data)
    return answer


def told_by(answer: Results) -> Any:
    return json.loads(b"".join(answer.parts()))


TOKENS = [encode_token(1, index, embedding_text(index, vector, 3)) for index, vector in enumerate(VECTORS)]


def test_vectors_are_told_as_numbers_or_in_base64() -> None:
    """In whatever pieces the stream comes, and with what else is said on it."""
    numbers = fed(Vectors(embed()), b"retry: 1000\n\n", STARTED + FACTS, TOKENS[0] + TOKENS[1], b":\n\n", end(2))
    assert (numbers.over, numbers.error) == (True, None)
    told = told_by(numbers)
    assert [each["embedding"] for each in told["data"]] == VECTORS
    assert [(each["object"], each["index"]) for each in told["data"]] == [("embedding", 0), ("embedding", 1)]
    assert (told["object"], told["model"]) == ("list", "mock:words")
    assert told["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    packed = told_by(fed(Vectors(embed(encoding_format="base64")), *TOKENS, end(2)))
    for each, vector in zip(packed["data"], VECTORS, strict=True):
        assert list(struct.unpack("<3f", base64.b64decode(each["embedding"]))) == [
            struct.unpack("<f", struct.pack("<f", number))[0] for number in vector
        ]


SCORES = [encode_token(1, index, score_text(index, score, 2)) for index, score in enumerate([-0.5, 2.25, 0.75])]


def test_documents_are_told_by_their_relevance() -> None:
    told = told_by(fed(Scores(rerank()), STARTED, *SCORES, end(3)))
    assert told["results"] == [
        {"index": 1, "relevance_score": 2.25},
        {"index": 2, "relevance_score": 0.75},
        {"index": 0, "relevance_score": -0.5},
    ]
    assert (told["id"], told["model"]) == (f"rerank-{NEW_ID}", "mock:ranks")
    best = told_by(fed(Scores(rerank(top_n=1, return_documents=True)), *SCORES, end(3)))
    assert best["results"] == [{"index": 1, "relevance_score": 2.25, "document": {"text": "y"}}]


@pytest.mark.parametrize(
    ("last", "code"),
    [
        (end(1, "cancelled"), ErrorCode.CANCELLED),
        (end(1), ErrorCode.INTERNAL),
        (encode_error(1, 1, ErrorBody(code=ErrorCode.WORKER_RESET, message="lost")), ErrorCode.WORKER_RESET),
    ],
)
def test_an_answer_that_is_not_whole_is_none(last: bytes, code: ErrorCode) -> None:
    answer = fed(Vectors(embed()), STARTED, TOKENS[0], last, TOKENS[1])
    assert answer.over
    assert answer.error is not None
    assert answer.error.code is code


@pytest.mark.parametrize("frames", [(encode_token(1, 0, " a word"), end(1)), (TOKENS[0], end(1)), (SCORES[0], end(1))])
def test_the_id_of_another_requests_task_is_refused_and_is_no_fault(frames: tuple[bytes, ...]) -> None:
    """The same task id is the same task, whatever it answers."""
    answer = fed(Vectors(embed(llorch={"task_id": "00000000-0000-4000-8000-000000000002"})), STARTED, *frames)
    assert answer.over
    assert answer.error is not None
    assert (answer.error.code, answer.error.hint) == (
        ErrorCode.INVALID_PARAMS,
        "the same task id is the same task for 72 hours; take a fresh UUID for another",
    )


def test_what_an_answer_will_hold_is_known_with_its_first_result() -> None:
    answer = fed(Vectors(embed(input=["a"] * 2_000)), STARTED)
    assert answer.held == 0
    fed(answer, encode_token(1, 0, embedding_text(0, [0.1] * 4_096, 1)))
    assert answer.held > 2_000 * 4_096 * 4


def test_an_answer_holds_no_more_than_its_bound_and_its_share_of_the_room() -> None:
    rooms = AnswerRoom(8 * MIB, together=10 * MIB)
    with rooms.for_one() as one, rooms.for_one() as other:
        one.grow(MIB)
        one.grow(7 * MIB)
        one.grow(6 * MIB)
        other.grow(MIB)
        with pytest.raises(OrchError) as refused:
            other.grow(4 * MIB)
        assert (refused.value.status, refused.value.body.retriable) == (503, True)
        with pytest.raises(OrchError) as refused:
            one.grow(8 * MIB + 1)
        assert (refused.value.status, refused.value.body.retriable) == (400, False)
    with rooms.for_one() as one:
        one.grow(8 * MIB)


async def test_vectors_that_are_too_large_together_end_with_the_first_of_them() -> None:
    spec = pool_spec("vectors", workloads=["embedding"])
    async with cluster_of(spec, replica("vectors", workloads=spec.serves)) as cluster:
        door = await cluster.gateway(answer_bytes_max=MIB)
        ask = {"model": "vectors", "input": ["a"] * 100, "llorch": {"task_id": NEW_ID}}
        reply = door.open("POST", "/v1/embeddings", msgspec.json.encode(ask), {"content-type": "application/json"})
        await eventually(lambda: bool(door.gateway.backend.router.seats))
        large = encode_token(1, 0, embedding_text(0, [0.25] * 4_096, 1))
        await cluster.publish(door.lane, NEW_ID, STARTED, large)
        assert (await reply.end()).status == 400
        assert "at most 1048576 are kept" in reply.json()["error"]["message"]


async def test_a_large_answer_is_sent_in_pieces() -> None:
    spec = pool_spec("vectors", workloads=["embedding"])
    async with cluster_of(spec, replica("vectors", workloads=spec.serves)) as cluster:
        door = await cluster.gateway()
        ask = {"model": "vectors", "input": ["a"] * 40, "llorch": {"task_id": NEW_ID}}
        reply = door.open("POST", "/v1/embeddings", msgspec.json.encode(ask), {"content-type": "application/json"})
        await eventually(lambda: bool(door.gateway.backend.router.seats))
        frames = [encode_token(1, index, embedding_text(index, [0.25] * 4_096, 1)) for index in range(40)]
        await cluster.publish(door.lane, NEW_ID, STARTED, *frames, end(40))
        told = (await reply.end()).json()
        assert reply.headers["content-length"] == str(len(reply.body))
        assert reply.pieces > 10
        assert [len(each["embedding"]) for each in told["data"]] == [4_096] * 40
