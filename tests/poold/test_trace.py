"""Transcripts of streams as artifacts: what every reader has, once."""

from pathlib import Path

import msgspec
import pytest

from llorch_shared.artifacts import Artifacts
from llorch_shared.transcripts import transcript_of
from llorch_shared.wire import frames
from llorch_shared.wire.artifacts import ArtifactKind, ArtifactRef
from support.bus_worlds import becomes_true
from support.nats_server import NatsServer
from support.node_harness import NodeHarness, mock_pool

STARTED = frames.encode_started(frames.Started(queue_position=0, predicted_start_ms=0, device="cpu"))
END = frames.encode_end(1, frames.End(tokens_out=3, decode_ms=5, decode_time_ms=5, finish_reason="stop"))


def test_a_transcript_has_each_event_once_and_in_order_whatever_was_repeated() -> None:
    tokens = [frames.encode_token(1, index, f" w{index}") for index in range(3)]
    metrics = frames.encode_metrics(frames.Metrics(attempt=2))
    parts = [STARTED, metrics, tokens[0], metrics, STARTED, tokens[0] + tokens[1], tokens[1], tokens[2], END, END]
    plain = msgspec.json.decode(msgspec.json.encode(transcript_of(parts)))
    assert [event["event"] for event in plain] == ["started", "token", "token", "token", "end"]
    assert [event["data"]["i"] for event in plain[1:4]] == [0, 1, 2]
    assert transcript_of(parts) == transcript_of([STARTED, *tokens, END])


@pytest.mark.nats
async def test_a_task_that_asks_for_it_leaves_its_transcript_and_no_other_does(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=0)]) as node:
        await node.ready()
        artifacts = Artifacts(node.bus)
        await node.until_ended(await node.place())
        task = await node.until_ended(await node.place(trace=True, max_tokens=5))
        found: list[ArtifactRef] = []

        async def kept() -> bool:
            found[:] = (await artifacts.page("default", kind=ArtifactKind.TRACE, limit=9)).artifacts
            return bool(found)

        await becomes_true(kept)
        [ref] = found
        assert set(ref.tags) >= {"sse", "stream", f"task:{task.task_id}"}
        whole = await artifacts.get(ref.id, "default")
        assert whole is not None
        told = [event["data"] for event in whole.content["transcript"] if event["event"] == "token"]
        assert told == task.tokens
        assert whole.content["transcript"][-1] == {"event": "end", "data": task.data("end")[0]}
        assert whole.metadata["replica_id"] == "mock-node-1-1"
        assert set(whole.metadata) == {"engine", "engine_version", "pool_id", "replica_id"}
