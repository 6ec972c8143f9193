"""Transcripts of tasks that no node lives to write: of what the scheduler ends, and of a node that died."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import msgspec
import pytest

from llorch_scheduler import trace_keeper
from llorch_scheduler.trace_keeper import TraceKeeper
from llorch_shared import streams, subjects
from llorch_shared.artifacts import Artifacts
from llorch_shared.bus.port import Bus
from llorch_shared.wire import frames
from llorch_shared.wire.artifacts import Artifact, ArtifactKind, StoredArtifact
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.task import Engine, Priority, TaskState
from scheduler.world import request, settings, town
from support.bus_worlds import MemoryWorld, becomes_true, eventually

STARTED = frames.encode_started(
    frames.Started(queue_position=0, predicted_start_ms=0, engine=Engine.MOCK, engine_version="1.2")
)
TOKENS = [frames.encode_token(1, index, f" w{index}") for index in range(3)]


async def _traces(bus: Bus) -> Sequence[StoredArtifact]:
    artifacts = Artifacts(bus)
    found = (await artifacts.page("default", kind=ArtifactKind.TRACE, limit=9)).artifacts
    return [kept for ref in found if (kept := await artifacts.get(ref.id, "default")) is not None]


def _events(trace: StoredArtifact) -> list[str]:
    return [event["event"] for event in trace.content["transcript"]]


async def test_a_traced_task_that_is_cancelled_in_the_queue_leaves_its_transcript_and_no_other_does() -> None:
    async with town(MemoryWorld()) as place:
        await place.scheduler()
        plain, traced = request(), request(trace=True)
        for task in (plain, traced):
            await place.client.admit(task)
            await place.client.cancel(task.task_id)
        await becomes_true(lambda: _are_kept(place.client.bus, 1))
        [trace] = await _traces(place.client.bus)
        assert set(trace.tags) == {"sse", "stream", f"task:{traced.task_id}", f"session:{traced.session_id}"}
        assert trace.metadata == {"engine": "", "engine_version": "", "pool_id": "p1", "replica_id": ""}
        assert _events(trace) == ["end"]
        assert trace.content["transcript"][0]["data"]["finish_reason"] == "cancelled"
        run = await place.client.run_of(plain.task_id)
        assert run is not None
        assert not run.trace


async def test_a_traced_task_that_used_up_its_attempts_leaves_what_its_readers_have() -> None:
    async with town(MemoryWorld()) as place:
        await place.scheduler(settings(attempts_max=1))
        node = await place.node()
        task = request(trace=True)
        await place.client.admit(task)
        await eventually(lambda: bool(node.held))
        for frame in (STARTED, *TOKENS):
            place.client.bus.publish(subjects.tokens("gw-1", task.task_id), frame)
        await node.engine_dies()
        await becomes_true(lambda: _are_kept(place.client.bus, 1))
        [trace] = await _traces(place.client.bus)
        assert _events(trace) == ["started", "token", "token", "token", "error"]
        assert trace.content["transcript"][-1]["data"]["code"] == "WORKER_RESET"
        assert (trace.metadata["engine"], trace.metadata["engine_version"]) == ("mock", "1.2")


async def _are_kept(bus: Bus, number: int) -> bool:
    return len(await _traces(bus)) == number


ENDED = RunRecord(
    task_id=request().task_id,
    state=TaskState.DONE,
    pool_id="p1",
    replica_id="p1-node-1-0",
    incarnation="i1",
    lane="gw-1",
    correlation_id="c",
    tenant="default",
    priority=Priority.INTERACTIVE,
    admitted_ms=1,
    ended_ms=2,
    tokens_out=3,
    finish_reason="stop",
    session_id="s",
    trace=True,
)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that lives has written at once."""
    monkeypatch.setattr(trace_keeper, "NODE_WRITES_WITHIN_S", 0)


async def test_the_scheduler_writes_for_a_node_that_died_and_not_for_one_that_lives(at_once: None) -> None:
    async with town(MemoryWorld()) as place:
        process = await place.scheduler()
        node = await place.node()
        await eventually(lambda: process.active)
        await place.client.admit(first := request())
        await eventually(lambda: first.task_id in node.held)
        lives = msgspec.structs.replace(ENDED, task_id=request().task_id, incarnation=node.incarnation, tokens_out=0)
        died = msgspec.structs.replace(ENDED, task_id=request().task_id, incarnation="another", tokens_out=0)
        for each in (lives, died):
            await place.client.bus.store(subjects.run(each.task_id), msgspec.json.encode(each))
        await becomes_true(lambda: _are_kept(place.client.bus, 1))
        [trace] = await _traces(place.client.bus)
        assert f"task:{died.task_id}" in trace.tags


class Keeping:
    """A keeper at work."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.asked: list[str] = []
        self.alive = False
        self.keeper = TraceKeeper(bus, Artifacts(bus), going=lambda: True, lives=self._lives)

    def _lives(self, run: RunRecord) -> bool:
        self.asked.append(run.task_id)
        return self.alive

    def publish(self, *parts: bytes) -> None:
        for part in parts:
            self.bus.publish(subjects.tokens(ENDED.lane, ENDED.task_id), part)

    async def has_asked(self, times: int) -> None:
        await eventually(lambda: len(self.asked) >= times)


@pytest.fixture
async def keeping(at_once: None) -> AsyncIterator[Keeping]:
    bus = await MemoryWorld().connect()
    await bus.ensure(streams.base())
    made = Keeping(bus)
    task = asyncio.create_task(made.keeper.keep())
    yield made
    task.cancel()
    await asyncio.wait({task})
    await bus.close()


async def test_the_transcript_of_a_node_that_died_is_made_of_the_token_log_and_the_record(keeping: Keeping) -> None:
    keeping.publish(STARTED, *TOKENS)
    keeping.keeper.saw(ENDED)
    await becomes_true(lambda: _are_kept(keeping.bus, 1))
    [trace] = await _traces(keeping.bus)
    assert _events(trace) == ["started", "token", "token", "token", "end"]
    assert trace.metadata["replica_id"] == ENDED.replica_id


async def test_what_is_missing_in_the_token_log_is_waited_for(keeping: Keeping) -> None:
    keeping.publish(STARTED, TOKENS[0])
    keeping.keeper.saw(ENDED)
    await keeping.has_asked(1)
    keeping.publish(*TOKENS[1:])
    await becomes_true(lambda: _are_kept(keeping.bus, 1))
    [trace] = await _traces(keeping.bus)
    assert _events(trace) == ["started", "token", "token", "token", "end"]


async def test_nothing_is_written_that_nobody_asked_for_or_that_a_node_writes(keeping: Keeping) -> None:
    keeping.publish(STARTED, *TOKENS)
    written = Artifact(kind=ArtifactKind.TRACE, content={"by": "its node"}, tags=(f"task:{ENDED.task_id}",))
    keeping.alive = True
    for run in (
        msgspec.structs.replace(ENDED, trace=False),
        msgspec.structs.replace(ENDED, state=TaskState.RUNNING),
        ENDED,
    ):
        keeping.keeper.saw(run)
    await keeping.has_asked(1)
    keeping.alive = False
    await Artifacts(keeping.bus).create(written, "default")
    keeping.keeper.saw(ENDED)
    keeping.keeper.saw(msgspec.structs.replace(ENDED, task_id=request().task_id, tokens_out=0, incarnation=""))
    await becomes_true(lambda: _are_kept(keeping.bus, 2))
    first, second = await _traces(keeping.bus)
    assert first.content == {"by": "its node"}
    assert _events(second) == ["end"]
