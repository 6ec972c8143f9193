"""Readers of tasks that wait: what they are told, how often, and that it changes nothing about their streams."""

import asyncio
import json

import msgspec
import pytest

from llorch_gateway.core.notice import notice
from llorch_gateway.core.prospect import Prospect
from llorch_gateway.relay import stream
from llorch_gateway.relay.notices import EVERY_S, Notices
from llorch_shared.streaming.reader import Reader
from llorch_shared.wire.frames import Metrics, peek, split_events
from llorch_shared.wire.registry import ReplicaRecord, ReplicaState
from llorch_shared.wire.run import Located, WaitsFor
from llorch_shared.wire.task import Priority
from support.gateways import POOL, STARTED, Cluster, Door, end, load_report, replica, tokens

LOAD = load_report(queued={"interactive": 3, "batch": 4}, slots_free=0)
FIRST = b"retry: 1000\n\n"


def of(replicas: list[ReplicaRecord], ready: int = 1) -> tuple[Metrics, str]:
    load = msgspec.structs.replace(LOAD, replicas_ready=ready)
    told = notice("t", load, replicas, Prospect(2, 700, loading=False))
    assert told is not None
    return told.metrics, told.narration.human


def fetching(progress: str) -> ReplicaRecord:
    return replica(state=ReplicaState.PROVISIONING, progress=progress)


def test_a_waiting_task_has_a_place_and_a_time() -> None:
    metrics, human = of([replica()])
    assert (metrics.queue_depth, metrics.queue_position, metrics.predicted_start_ms) == (7, 2, 700)
    assert (metrics.waits_for, human) == (WaitsFor.SLOT, "waits behind 2 tasks")


def test_a_download_is_told_with_its_share_where_that_is_known() -> None:
    metrics, human = of([fetching("model x: downloads 41 %"), fetching("model x: downloads 7 %")], ready=0)
    assert (metrics.waits_for, metrics.progress_percent) == (WaitsFor.DOWNLOAD, 41)
    assert human == "waits for a download: 41 %"
    metrics, human = of([fetching("waiting for the provisioner")], ready=0)
    assert (metrics.waits_for, metrics.progress_percent, human) == (WaitsFor.DOWNLOAD, None, "waits for a download")


@pytest.mark.parametrize("state", [ReplicaState.STARTING, ReplicaState.TESTING, ReplicaState.BACKOFF])
def test_what_is_here_and_not_ready_is_loading(state: ReplicaState) -> None:
    metrics, human = of([replica(state=state), fetching("model x: downloads 7 %")], ready=0)
    assert (metrics.waits_for, human) == (WaitsFor.MODEL, "waits for the model to load")


def test_a_model_that_may_not_be_loaded_is_named_as_what_is_waited_for() -> None:
    metrics, human = of([replica(state=ReplicaState.FAILED, refused="UNTRUSTED_ARTIFACT")], ready=0)
    assert metrics.waits_for is WaitsFor.TRUST
    assert "trust policy" in human


def test_a_task_that_a_replica_holds_waits_no_more() -> None:
    assert notice("t", LOAD, [replica(active=("t",))], None) is None


def test_news_are_told_once_and_at_a_bounded_rate() -> None:
    place = Prospect(5, 100, loading=False)

    def look() -> object:
        return notice("t", LOAD, [replica()], place)

    told = Notices(look, now=0.0, narrate_s=60.0)  # type: ignore[arg-type]
    assert not told.is_due(EVERY_S - 0.1)
    first = told.frame(EVERY_S)
    assert [event.event for event in split_events(first)] == ["metrics", "narration"]
    assert not told.is_due(2 * EVERY_S - 0.1)
    place = Prospect(5, 90, loading=False)
    assert told.frame(2 * EVERY_S) == b""
    place = Prospect(4, 80, loading=False)
    assert [event.event for event in split_events(told.frame(3 * EVERY_S))] == ["metrics"]
    silent = Notices(look, now=0.0, narrate_s=None)  # type: ignore[arg-type]
    assert [event.event for event in split_events(silent.frame(EVERY_S))] == ["metrics"]


def test_tokens_gather_for_a_moment_and_the_end_does_not() -> None:
    reader = Reader(None, buffer_bytes=1_000_000, in_step=True)
    assert stream.gather_s(reader, since_write_s=0.0) == 0
    for data in (STARTED, tokens(0, 0)):
        reader.live(peek(data), data)
    assert stream.gather_s(reader, since_write_s=0.005) == pytest.approx(stream.MICROBATCH_S - 0.005)
    assert stream.gather_s(reader, since_write_s=1.0) < 0
    reader.live(peek(end(1)), end(1))
    assert stream.gather_s(reader, since_write_s=0.0) == 0


def later(door: Door) -> None:
    """The next pulse, `EVERY_S` later."""
    door.gateway.backend.router.tick(asyncio.get_running_loop().time() + 1.5 * EVERY_S)


async def test_a_reader_hears_how_its_task_waits_and_then_reads_the_same_stream_as_any(cluster: Cluster) -> None:
    door = await cluster.gateway(tick=False, sse_heartbeat_ms=0)
    ahead, task = await door.submit(), await door.submit()
    await cluster.report(msgspec.structs.replace(LOAD, queued={"interactive": 2}, queue_seq={"interactive": 2}))
    seen = door.stream(task)
    await seen.until(lambda reply: reply.body == FIRST)
    later(door)
    await seen.until_event("narration")
    metrics, narration = split_events(seen.body.removeprefix(FIRST))
    told = msgspec.json.decode(metrics.data, type=Metrics)
    assert (told.queue_depth, told.waits_for, metrics.id, narration.id) == (2, WaitsFor.SLOT, "", "")
    assert told.queue_position is not None
    assert "waits" in json.loads(narration.data)["human"]
    before = seen.body
    await cluster.publish(door.lane, task, STARTED)
    later(door)
    await cluster.publish(door.lane, task, tokens(0, 4), end(5))
    await seen.end()
    assert seen.body == before + STARTED + tokens(0, 4) + end(5)
    assert (await door.stream(task).end()).body == FIRST + STARTED + tokens(0, 4) + end(5)
    assert ahead


async def test_elsewhere_the_depth_of_the_queue_is_told(cluster: Cluster, door: Door) -> None:
    other = await cluster.gateway(tick=False, sse_logs_enabled=False)
    task = await door.submit()
    cluster.queued[task] = Located(
        found=True, pool_id=POOL, lane=door.lane, tenant="default", priority=Priority.INTERACTIVE
    )
    await cluster.report(LOAD)
    seen = other.stream(task)
    await seen.until(lambda reply: reply.body == FIRST)
    later(other)
    await seen.until_event("metrics")
    [event] = split_events(seen.body.removeprefix(FIRST))
    told = msgspec.json.decode(event.data, type=Metrics)
    assert (told.queue_depth, told.queue_position, told.waits_for) == (7, None, WaitsFor.SLOT)
    await seen.leave()


async def test_who_has_seen_the_beginning_hears_no_news(cluster: Cluster) -> None:
    door = await cluster.gateway(tick=False, sse_heartbeat_ms=0)
    task = await door.submit()
    await cluster.report(LOAD)
    seen = door.stream(task, after="1-3")
    await seen.until(lambda reply: reply.body == FIRST)
    later(door)
    await cluster.publish(door.lane, task, STARTED, tokens(0, 5), end(6))
    await seen.end()
    assert seen.body == FIRST + tokens(4, 5) + end(6)


async def test_with_micro_batches_the_stream_is_the_same(cluster: Cluster) -> None:
    door = await cluster.gateway(sse_microbatch=True)
    task = await door.submit()
    seen = door.stream(task)
    await seen.until(lambda reply: reply.body == FIRST)
    for index in range(30):
        await cluster.publish(door.lane, task, *([STARTED] if index == 0 else []), tokens(index, index))
    await cluster.publish(door.lane, task, end(30))
    await seen.end()
    assert seen.body == FIRST + STARTED + tokens(0, 29) + end(30)
