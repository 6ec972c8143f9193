"""Through the whole system: a prompt that no bus message holds, the transcript that it leaves, a retired model."""

from pathlib import Path

import msgspec
import pytest

from llorch_shared import streams, subjects
from llorch_shared.wire.artifacts import ArtifactList, StoredArtifact
from llorch_shared.wire.frames import Token
from support.bus_worlds import becomes_true
from support.client import JSON, task_request
from support.system import System, mock_pool

pytestmark = pytest.mark.system

CTX = 32_768
MODEL = {"id": "words", "digest": f"sha256:{'a' * 64}", "source_url": "mock:words", "tags": ["stable"]}


async def test_large_prompts_transcripts_and_retired_models(tmp_path: Path) -> None:
    async with System(tmp_path, pools=[mock_pool(ctx=CTX, replicas=1, rate=0)]) as system:
        client = system.client()
        prompt = f"{'p' * 2_000_000} end"
        accepted = await client.submit(ctx=CTX, max_tokens=8, prompt=prompt, trace=True)
        read = await client.read(accepted.task_id)
        assert read.end is not None
        assert (read.end.tokens_in, read.end.tokens_out) == (2, 8)
        stored = await system.bus.last(streams.RUN, subjects.run(accepted.task_id))
        assert stored is not None
        assert len(stored.data) < 10_000
        found: list[ArtifactList] = []

        async def kept() -> bool:
            reply = await client.http.get(f"/v1/artifacts?kind=trace&tag=task:{accepted.task_id}")
            found[:] = [msgspec.json.decode(reply.content, type=ArtifactList)]
            return bool(found[0].artifacts)

        await becomes_true(kept)
        [ref] = found[0].artifacts
        whole = msgspec.json.decode((await client.http.get(f"/v1/artifacts/{ref.id}")).content, type=StoredArtifact)
        told = [event["data"] for event in whole.content["transcript"] if event["event"] == "token"]
        assert msgspec.convert(told, list[Token]) == read.tokens

        made = await client.http.post("/v1/catalog/models", json=MODEL)
        assert made.status_code == 201, made.text
        await _answers(system, 202, "catalog:stable")
        for state, status in (("Retired", 403), ("Active", 202)):
            change = await client.http.post("/v1/catalog/models/words/state", json={"state": state})
            assert change.status_code == 202, change.text
            await _answers(system, status, "mock:words")


async def _answers(system: System, status: int, model_ref: str) -> None:
    """Waits until a task for the model is answered so: gateways and nodes follow the catalog."""

    async def so() -> bool:
        body = msgspec.json.encode(task_request(model_ref=model_ref, max_tokens=1))
        reply = await system.client().http.post("/v1/tasks", content=body, headers=JSON)
        return reply.status_code == status

    await becomes_true(so, 30)
