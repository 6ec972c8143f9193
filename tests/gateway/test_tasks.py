"""Looking tasks up and cancelling them: queued, running, twice, after the end, unknown, elsewhere."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import msgspec
import pytest

from llorch_shared import streams, subjects
from llorch_shared.bus.port import Message
from llorch_shared.errors import ErrorCode
from llorch_shared.wire.run import CANCEL_DECODER, Located, TaskView
from llorch_shared.wire.task import Priority, TaskRef, TaskState
from llorch_shared.wire.version import VERSION_HEADER, VERSIONS, Kind
from support.gateways import STARTED, Cluster, Door, end, pool_spec, replica, run_record, settle, tokens


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a scheduler that is to come."""
    monkeypatch.setattr("llorch_gateway.tasks.LOCATE_PATIENCE_S", 0.0)


async def test_a_queued_task_of_this_gateway_is_known_at_once(door: Door) -> None:
    task = await door.submit()
    view = (await door.get(f"/v1/tasks/{task}")).json(TaskView)
    assert (view.state, view.pool_id, view.queue_position) == (TaskState.QUEUED, "p1", 0)


async def test_a_queued_task_of_another_door_is_located_by_the_scheduler(cluster: Cluster, door: Door) -> None:
    task = str(uuid.uuid4())
    cluster.queued[task] = Located(
        found=True, pool_id="p1", lane="bus", priority=Priority.BATCH, queue_position=7, predicted_start_ms=700
    )
    view = (await door.get(f"/v1/tasks/{task.upper()}")).json(TaskView)
    assert (view.task_id, view.state, view.queue_position) == (task, TaskState.QUEUED, 7)


async def test_a_placed_task_is_told_from_its_record(cluster: Cluster, door: Door) -> None:
    task = await door.submit()
    await cluster.record(run_record(task, TaskState.RUNNING, lane=door.lane, replica_id="p1-node-0", attempt=2))
    view = (await door.get(f"/v1/tasks/{task}")).json(TaskView)
    assert (view.state, view.attempt, view.replica_id, view.queue_position) == (
        TaskState.RUNNING,
        2,
        "p1-node-0",
        None,
    )


async def test_a_record_that_a_newer_release_wrote_is_not_half_understood(cluster: Cluster, door: Door) -> None:
    task = await door.submit()
    reading = door.stream(task)
    await reading.until(lambda seen: bool(seen.body))
    await cluster.bus.store(
        subjects.run(task), b"a record of tomorrow", headers={VERSION_HEADER: str(VERSIONS[Kind.RUN] + 1)}
    )
    reply = await door.get(f"/v1/tasks/{task}")
    assert (reply.status, reply.error.code, reply.error.retriable) == (503, ErrorCode.POOL_UNAVAILABLE, True)
    assert "newer release" in reply.error.message
    await cluster.publish(door.lane, task, STARTED, tokens(0, 4), end(5))
    assert (await reading.end()).events[-1].event == "end", "its frames are read all the same"


async def test_an_unknown_task_is_not_found_and_a_bad_id_is_refused(door: Door) -> None:
    for method, suffix in (("GET", ""), ("POST", "/cancel"), ("DELETE", "")):
        unknown = await door.request(method, f"/v1/tasks/{uuid.uuid4()}{suffix}")
        assert (unknown.status, unknown.error.code) == (404, ErrorCode.INVALID_PARAMS)
        bad = await door.request(method, f"/v1/tasks/seventeen{suffix}")
        assert (bad.status, bad.error.code) == (400, ErrorCode.INVALID_PARAMS)


@pytest.mark.usefixtures("impatient")
async def test_without_a_scheduler_nobody_knows_queued_tasks_of_others(cluster: Cluster, door: Door) -> None:
    await cluster.bus.close()
    reply = await door.get(f"/v1/tasks/{uuid.uuid4()}")
    assert (reply.status, reply.error.code, reply.error.retriable) == (503, ErrorCode.POOL_UNAVAILABLE, True)


def in_shards(count: int) -> list[str]:
    """Names of pools of as many shards."""
    found: dict[int, str] = {}
    for number in range(200):
        found.setdefault(subjects.shard_of(f"pool-{number}"), f"pool-{number}")
    return list(found.values())[:count]


Locate = Callable[[TaskRef], Located]


@contextlib.asynccontextmanager
async def sharded(*pools: str) -> AsyncIterator[tuple[Door, Callable[[str, Locate], Awaitable[None]]]]:
    """A gateway that knows these pools, and a way to have a scheduler answer for one of them."""
    cluster = Cluster()
    await cluster.bus.ensure(streams.base())
    for pool in pools:
        await cluster.add_pool(pool_spec(pool), replica(pool))

    async def locating(pool: str, locate: Locate) -> None:
        async def answer(message: Message) -> tuple[bytes, Mapping[str, str]]:
            return msgspec.json.encode(locate(msgspec.json.decode(message.data, type=TaskRef))), {}

        await cluster.bus.serve(subjects.locate(subjects.shard_of(pool)), answer)

    try:
        yield await cluster.gateway(), locating
    finally:
        await cluster.close()


@pytest.mark.usefixtures("impatient")
async def test_every_shard_with_pools_is_asked_and_whoever_has_the_task_is_believed() -> None:
    first, second = in_shards(2)
    task, unknown = str(uuid.uuid4()), str(uuid.uuid4())
    known = Located(found=True, pool_id=second, lane="bus", priority=Priority.BATCH, queue_position=4)
    async with sharded(first, second) as (door, locating):
        await locating(first, lambda ref: Located(found=False))
        silent = await door.get(f"/v1/tasks/{unknown}")
        assert (silent.status, silent.error.code) == (503, ErrorCode.POOL_UNAVAILABLE)
        await locating(second, lambda ref: known if ref.task_id == task else Located(found=False))
        assert (await door.get(f"/v1/tasks/{task}")).json(TaskView).queue_position == 4
        assert (await door.get(f"/v1/tasks/{unknown}")).status == 404


@pytest.mark.usefixtures("impatient")
async def test_an_unknown_task_is_not_found_though_nobody_decides_for_shards_without_pools() -> None:
    (only,) = in_shards(1)
    async with sharded(only) as (door, locating):
        unanswered = await door.get(f"/v1/tasks/{uuid.uuid4()}")
        assert (unanswered.status, unanswered.error.code, unanswered.error.retriable) == (
            503,
            ErrorCode.POOL_UNAVAILABLE,
            True,
        )
        await locating(only, lambda _ref: Located(found=False))
        assert (await door.get(f"/v1/tasks/{uuid.uuid4()}")).status == 404


async def test_who_looks_for_a_task_while_its_shard_is_handed_over_waits_for_the_next_scheduler() -> None:
    (only,) = in_shards(1)
    task = str(uuid.uuid4())
    known = Located(found=True, pool_id=only, lane="bus", priority=Priority.BATCH, queue_position=4)
    async with sharded(only) as (door, locating):
        asking = asyncio.create_task(door.get(f"/v1/tasks/{task}"))
        await settle()
        assert not asking.done()
        await locating(only, lambda _ref: known)
        assert (await asking).json(TaskView).queue_position == 4


async def test_a_task_that_waits_for_a_removed_pool_is_still_told(cluster: Cluster) -> None:
    """Before and after a restart of the gateway, which finds the pool gone."""
    task = str(uuid.uuid4())
    cluster.queued[task] = Located(found=True, pool_id="p1", lane="bus", priority=Priority.BATCH, queue_position=2)
    before = await cluster.gateway()
    await cluster.bus.store(subjects.spec(subjects.pool_key("p1")), b"", headers={"KV-Operation": "DEL"})
    await settle()
    for door in (before, await cluster.gateway()):
        assert (await door.get(f"/v1/tasks/{task}")).json(TaskView).queue_position == 2
        assert (await door.get(f"/v1/tasks/{uuid.uuid4()}")).status == 404


async def test_a_task_that_one_scheduler_has_is_told_while_another_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llorch_gateway.tasks.LOCATE_TIMEOUT_S", 60.0)
    first, second = in_shards(2)
    known = Located(found=True, pool_id=second, lane="bus", priority=Priority.BATCH, queue_position=4)

    def never(_ref: TaskRef) -> Located:
        raise RuntimeError("stepped down")

    async with sharded(first, second) as (door, locating):
        await locating(first, never)
        await locating(second, lambda _ref: known)
        view = (await door.get(f"/v1/tasks/{uuid.uuid4()}")).json(TaskView)
        assert view.queue_position == 4


class Holder:
    """Whoever holds the task: on the wake-up it ends it, in the order of ARCHITECTURE, invariant 3."""

    def __init__(self, cluster: Cluster, lane: str, *, count: int, state: TaskState = TaskState.CANCELLED) -> None:
        self._cluster = cluster
        self._lane = lane
        self._count = count
        self._state = state
        self._work: set[asyncio.Task[None]] = set()
        self.woken = 0

    async def listen(self) -> None:
        await self._cluster.bus.subscribe(subjects.ALL_CANCEL_SIGNALS, self._wake)

    def _wake(self, message: Message) -> None:
        self.woken += 1
        work = asyncio.ensure_future(self._end(subjects.last_token(message.subject)))
        self._work.add(work)
        work.add_done_callback(self._work.discard)

    async def _end(self, task: str) -> None:
        kept = await self._cluster.bus.last(streams.RUN, subjects.cancel(task))
        assert kept is not None
        assert CANCEL_DECODER.decode(kept.data).task_id == task
        await self._cluster.publish(self._lane, task, tokens(2, self._count - 1))
        reason = "cancelled" if self._state is TaskState.CANCELLED else "stop"
        await self._cluster.record(
            run_record(task, self._state, lane=self._lane, tokens_out=self._count, finish_reason=reason)
        )
        await self._cluster.publish(self._lane, task, end(self._count, reason=reason))


@pytest.mark.parametrize(("method", "suffix"), [("POST", "/cancel"), ("DELETE", "")])
async def test_a_running_task_is_cancelled_with_a_receipt_and_no_token_after_it(
    cluster: Cluster, door: Door, method: str, suffix: str
) -> None:
    other = await cluster.gateway()
    await Holder(cluster, door.lane, count=6).listen()
    task = await door.submit()
    readers = [door.stream(task)]
    await cluster.record(run_record(task, TaskState.RUNNING, lane=door.lane))
    readers.append(other.stream(task))
    await readers[1].until(lambda seen: bool(seen.body))
    await cluster.publish(door.lane, task, STARTED, tokens(0, 1))
    for reader in readers:
        await reader.until_event("token 1-1")
    reply = await other.request(method, f"/v1/tasks/{task}{suffix}")
    assert (reply.status, reply.body) == (204, b"")
    assert reply.headers["x-correlation-id"]
    for reader in readers:
        await reader.end()
        assert reader.names == ["started", "token 1-0", "token 1-1", "end 1-6"]
    late = await door.stream(task).end()
    assert late.names == ["started", "end 1-6"]


async def test_a_cancel_that_comes_too_late_leaves_the_stream_whole(cluster: Cluster, door: Door) -> None:
    await Holder(cluster, door.lane, count=4, state=TaskState.DONE).listen()
    task = await door.submit()
    await cluster.record(run_record(task, TaskState.RUNNING, lane=door.lane))
    reader = door.stream(task)
    await cluster.publish(door.lane, task, STARTED, tokens(0, 1))
    await reader.until_event("token 1-1")
    assert (await door.post(f"/v1/tasks/{task}/cancel")).status == 204
    await reader.end()
    assert reader.names == ["started", *[f"token 1-{index}" for index in range(4)], "end 1-4"]


async def test_a_queued_task_is_cancelled_with_a_receipt(cluster: Cluster, door: Door) -> None:
    task = await door.submit()
    reader = door.stream(task)
    await reader.until(lambda seen: bool(seen.body))

    async def scheduler() -> None:
        async with asyncio.timeout(15):
            while await cluster.bus.last(streams.RUN, subjects.cancel(task)) is None:
                await asyncio.sleep(0.005)
        await cluster.record(run_record(task, TaskState.CANCELLED, lane=door.lane, finish_reason="cancelled"))
        await cluster.publish(door.lane, task, end(0, reason="cancelled"))

    ending = asyncio.create_task(scheduler())
    assert (await door.post(f"/v1/tasks/{task}/cancel")).status == 204
    await ending
    assert (await reader.end()).names == ["end 1-0"]


async def test_a_receipt_whose_frame_got_lost_is_read_from_the_record(cluster: Cluster, door: Door) -> None:
    task = await door.submit()
    reader = door.stream(task)
    await cluster.publish(door.lane, task, STARTED, tokens(0, 0))
    await reader.until_event("token 1-0")
    cancelling = door.open("POST", f"/v1/tasks/{task}/cancel")
    await settle()
    await cluster.publish(door.lane, task, tokens(1, 3))
    await cluster.record(run_record(task, TaskState.CANCELLED, lane=door.lane, tokens_out=4, finish_reason="cancelled"))
    assert (await cancelling.end()).status == 204
    assert (await reader.end()).names == ["started", "token 1-0", "end 1-4"]


async def test_cancelling_twice_and_after_the_end_is_fine(cluster: Cluster, door: Door) -> None:
    holder = Holder(cluster, door.lane, count=2)
    await holder.listen()
    task = await door.submit()
    await cluster.record(run_record(task, TaskState.RUNNING, lane=door.lane))
    both = [door.open("POST", f"/v1/tasks/{task}/cancel") for _ in range(2)]
    assert [(await one.end()).status for one in both] == [204, 204]
    woken = holder.woken
    assert (await door.request("DELETE", f"/v1/tasks/{task}")).status == 204
    assert holder.woken == woken


async def test_a_cancel_whose_receipt_is_out_answers_with_the_state(cluster: Cluster) -> None:
    door = await cluster.gateway(cancel_wait_ms=50)
    task = await door.submit()
    await cluster.record(run_record(task, TaskState.RUNNING, lane=door.lane))
    reply = await door.post(f"/v1/tasks/{task}/cancel")
    assert reply.status == 202
    assert reply.json(TaskView).state is TaskState.RUNNING
    assert await cluster.bus.last(streams.RUN, subjects.cancel(task)) is not None


async def test_a_task_whose_last_reader_left_is_cancelled_after_a_grace(cluster: Cluster) -> None:
    door = await cluster.gateway(cancel_on_disconnect=True, cancel_grace_ms=20)
    await Holder(cluster, door.lane, count=2).listen()
    task = await door.submit()
    reader = door.stream(task)
    await reader.until(lambda seen: bool(seen.body))
    await reader.leave()
    wish = await _wish(cluster, task)
    assert CANCEL_DECODER.decode(wish.data).reason == "disconnect"


async def test_a_reader_that_comes_back_at_another_gateway_keeps_its_task(cluster: Cluster) -> None:
    door = await cluster.gateway(cancel_on_disconnect=True, cancel_grace_ms=1)
    other = await cluster.gateway(cancel_on_disconnect=True, cancel_grace_ms=1)
    task = await door.submit()
    await cluster.record(run_record(task, TaskState.RUNNING, lane=door.lane))
    reader = door.stream(task)
    await reader.until(lambda seen: bool(seen.body))
    again = other.stream(task)
    await again.until(lambda seen: bool(seen.body))
    asked = asyncio.Event()
    await cluster.bus.subscribe(subjects.readers_answer(task, door.lane), lambda _message: asked.set())
    await reader.leave()
    async with asyncio.timeout(15):
        await asked.wait()
    await settle()
    assert await cluster.bus.last(streams.RUN, subjects.cancel(task)) is None
    await again.leave()
    await _wish(cluster, task)


async def test_a_reader_that_comes_back_in_time_ends_the_grace(cluster: Cluster) -> None:
    door = await cluster.gateway(cancel_on_disconnect=True, cancel_grace_ms=60_000)
    task = await door.submit()
    await cluster.record(run_record(task, TaskState.RUNNING, lane=door.lane))
    reader = door.stream(task)
    await reader.until(lambda seen: bool(seen.body))
    leaving = door.gateway.backend.presence._leaving
    await reader.leave()
    async with asyncio.timeout(15):
        while task not in leaving:
            await asyncio.sleep(0.005)
    again = door.stream(task)
    await again.until(lambda seen: bool(seen.body))
    assert task not in leaving
    await cluster.publish(door.lane, task, STARTED, tokens(0, 1), end(2))
    assert (await again.end()).events[-1].event == "end"
    assert await cluster.bus.last(streams.RUN, subjects.cancel(task)) is None


async def test_the_grace_counts_from_the_last_departure_at_any_gateway(cluster: Cluster) -> None:
    """The client went from one gateway to another and has just left that, too: it may still come back."""
    door = await cluster.gateway(cancel_on_disconnect=True, cancel_grace_ms=1)
    other = await cluster.gateway(cancel_on_disconnect=True, cancel_grace_ms=60_000)
    task = await door.submit()
    await cluster.record(run_record(task, TaskState.RUNNING, lane=door.lane))
    readers = [door.stream(task), other.stream(task)]
    for reader in readers:
        await reader.until(lambda seen: bool(seen.body))
    await readers[1].leave()
    async with asyncio.timeout(15):
        while task not in other.gateway.backend.presence._in_grace:
            await asyncio.sleep(0.005)
    asked = asyncio.Event()
    await cluster.bus.subscribe(subjects.readers_answer(task, door.lane), lambda _message: asked.set())
    await readers[0].leave()
    async with asyncio.timeout(15):
        await asked.wait()
    await settle()
    assert await cluster.bus.last(streams.RUN, subjects.cancel(task)) is None


async def test_a_task_that_nobody_read_or_whose_stream_ended_is_not_cancelled(cluster: Cluster) -> None:
    door = await cluster.gateway(cancel_on_disconnect=True, cancel_grace_ms=0)
    task = await door.submit()
    reader = door.stream(task)
    await cluster.publish(door.lane, task, STARTED, tokens(0, 0), end(1))
    await reader.end()
    await door.gateway.stop_serving()
    await settle()
    assert await cluster.bus.last(streams.RUN, subjects.cancel(task)) is None


async def _wish(cluster: Cluster, task: str) -> Message:
    async with asyncio.timeout(15):
        while (message := await cluster.bus.last(streams.RUN, subjects.cancel(task))) is None:
            await asyncio.sleep(0.005)
    return message
