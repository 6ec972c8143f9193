"""Embeddings and rankings: requests as tasks, what is refused by its name, and streams as one answer."""

import base64
import json
import struct
from typing import Any

import msgspec
import pytest

from llorch_gateway.openai.core import models
from llorch_gateway.openai.core.errors import ParamError
from llorch_gateway.openai.core.results import AskedResults, Results, Scores, Vectors, read_embedding, read_rerank
from llorch_poold.core.results import embedding_text, score_text
from llorch_shared.errors import ErrorBody, ErrorCode
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
from support.gateways import pool_spec, replica

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


TOKENS = [encode_token(1, index, embedding_text(index, vector, 3)) for index, vector in enumerate(VECTORS)]


def test_vectors_are_told_as_numbers_or_in_base64() -> None:
    """In whatever pieces the stream comes, and with what else is said on it."""
    numbers = fed(Vectors(embed()), b"retry: 1000\n\n", STARTED + FACTS, TOKENS[0] + TOKENS[1], b":\n\n", end(2))
    assert (numbers.over, numbers.error) == (True, None)
    told = json.loads(numbers.body())
    assert [each["embedding"] for each in told["data"]] == VECTORS
    assert [(each["object"], each["index"]) for each in told["data"]] == [("embedding", 0), ("embedding", 1)]
    assert (told["object"], told["model"]) == ("list", "mock:words")
    assert told["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    packed = json.loads(fed(Vectors(embed(encoding_format="base64")), *TOKENS, end(2)).body())
    for each, vector in zip(packed["data"], VECTORS, strict=True):
        assert list(struct.unpack("<3f", base64.b64decode(each["embedding"]))) == [
            struct.unpack("<f", struct.pack("<f", number))[0] for number in vector
        ]


SCORES = [encode_token(1, index, score_text(index, score, 2)) for index, score in enumerate([-0.5, 2.25, 0.75])]


def test_documents_are_told_by_their_relevance() -> None:
    told = json.loads(fed(Scores(rerank()), STARTED, *SCORES, end(3)).body())
    assert told["results"] == [
        {"index": 1, "relevance_score": 2.25},
        {"index": 2, "relevance_score": 0.75},
        {"index": 0, "relevance_score": -0.5},
    ]
    assert (told["id"], told["model"]) == (f"rerank-{NEW_ID}", "mock:ranks")
    best = json.loads(fed(Scores(rerank(top_n=1, return_documents=True)), *SCORES, end(3)).body())
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
