"""First placements go ahead of any record: the node's claim is the record, and the scheduler writes one only when no
claim comes."""

import asyncio

import msgspec
import pytest

from llorch_scheduler import places, unclaimed
from llorch_scheduler.core.effects import Place
from llorch_scheduler.core.limits import Limits
from llorch_scheduler.run_store import RunStore
from llorch_scheduler.unclaimed import Unclaimed
from llorch_shared import streams, subjects
from llorch_shared.bus.port import Full, TooLarge, Unanswered
from llorch_shared.wire.audit import AUDIT_DECODER
from llorch_shared.wire.registry import APPOINTMENT_DECODER, AppointmentRequest
from llorch_shared.wire.run import RUN_DECODER, RunRecord
from llorch_shared.wire.task import Priority, TaskRequest, TaskState
from scheduler.core_world import World
from scheduler.world import Node, Town, pool_spec, request, town
from support.bus_worlds import MemoryWorld, becomes_true, eventually

LONG_S = 600.0


class Seen(dict[str, list[TaskState]]):
    """The states of every record that is stored, by task."""

    async def follow(self, town_: Town) -> "Seen":
        def note(data: bytes) -> None:
            record = RUN_DECODER.decode(data)
            self.setdefault(record.task_id, []).append(record.state)

        await town_.client.bus.subscribe(subjects.ALL_RUNS_LIVE, lambda message: note(message.data))
        return self


async def depth(town_: Town) -> int:
    stream = streams.admission_stream("p1", Priority.INTERACTIVE)
    return (await town_.client.bus.stream_state(stream)).messages


async def until_free(town_: Town) -> None:
    async def is_free() -> bool:
        return await depth(town_) == 0

    await becomes_true(is_free)


async def served(town_: Town, limits: Limits | None = None, **fields: bool) -> Node:
    """A scheduler that has read its backlog, and a node that it knows."""
    await town_.scheduler(limits=limits)
    node = await town_.node(**fields)
    first = request()
    await town_.client.admit(first)
    await eventually(lambda: first.task_id in node.held)
    await node.end(first.task_id)
    await until_free(town_)
    node.placements.clear()
    return node


async def test_a_claim_is_the_first_record_and_gives_the_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unclaimed, "MOMENT_S", LONG_S)
    async with town(MemoryWorld()) as place:
        node, seen = await served(place), await Seen().follow(place)
        task = request()
        await place.client.admit(task)
        await eventually(lambda: task.task_id in node.held)
        await until_free(place)
        assert node.placements[0].run_seq == 0
        await node.end(task.task_id)
        await eventually(lambda: seen[task.task_id] == [TaskState.RUNNING, TaskState.DONE])


async def test_what_nobody_claims_is_recorded_as_placed_and_can_still_be_claimed() -> None:
    async with town(MemoryWorld()) as place:
        node, seen = await served(place), await Seen().follow(place)
        node.claiming = False
        task = request()
        await place.client.admit(task)
        await eventually(lambda: seen.get(task.task_id) == [TaskState.PLACED])
        await until_free(place)
        await eventually(lambda: len(node.placements) == 2)
        signalled, stored = node.placements
        assert (signalled.run, signalled.run_seq) == (stored.run, 0)
        await node._claim(signalled)
        await eventually(lambda: seen[task.task_id] == [TaskState.PLACED, TaskState.RUNNING])


async def test_a_node_of_the_release_before_gets_what_is_recorded() -> None:
    async with town(MemoryWorld()) as place:
        node, seen = await served(place, takes_ahead=False), await Seen().follow(place)
        task = request()
        await place.client.admit(task)
        await eventually(lambda: task.task_id in node.held)
        assert node.placements[0].run_seq > 0
        await eventually(lambda: seen[task.task_id] == [TaskState.PLACED, TaskState.RUNNING])


async def test_what_waited_for_a_scheduler_is_recorded_first() -> None:
    """The one before may have placed it."""
    async with town(MemoryWorld()) as place:
        process = await place.scheduler()
        await eventually(lambda: bool(place.client.loads))
        await process.kill()
        task = request()
        await place.client.admit(task)
        await place.node()
        seen = await Seen().follow(place)
        await place.scheduler()
        await eventually(lambda: seen.get(task.task_id) == [TaskState.PLACED, TaskState.RUNNING])


async def test_who_was_refused_finds_the_place_of_a_task_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    async with town(MemoryWorld(), pool_spec(capacity=1)) as place:
        node = await served(place)
        monkeypatch.setattr(places, "GATHER_S", LONG_S)
        running, next_one = request(), request()
        await place.client.admit(running)
        await eventually(lambda: running.task_id in node.held)
        with pytest.raises(Full):
            await place.client.admit(next_one)
        assert await may_come(place, next_one)
        await place.client.admit(next_one)


async def may_come(place: Town, task: TaskRequest) -> bool:
    question = AppointmentRequest(
        task_id=task.task_id, pool_id="p1", priority=task.priority, tenant="default", refused=True
    )
    subject = subjects.appoint(subjects.shard_of("p1"))
    answer = await place.client.bus.request(subject, msgspec.json.encode(question))
    return APPOINTMENT_DECODER.decode(answer.data).admit


async def test_a_scheduler_that_leaves_records_what_is_placed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unclaimed, "MOMENT_S", LONG_S)
    async with town(MemoryWorld()) as place:
        node, seen = await served(place), await Seen().follow(place)
        node.claiming = False
        task = request()
        await place.client.admit(task)
        await eventually(lambda: bool(node.placements))
        await asyncio.wait_for(place.processes[0].leave(), 20)
        assert seen[task.task_id] == [TaskState.PLACED]
        assert await depth(place) == 0


async def test_a_placement_whose_signal_its_node_misses_is_stored_for_it() -> None:
    async with town(MemoryWorld()) as place:
        node, seen = await served(place, hears_ahead=False), await Seen().follow(place)
        task = request()
        await place.client.admit(task)
        await eventually(lambda: task.task_id in node.held)
        await eventually(lambda: seen[task.task_id] == [TaskState.PLACED, TaskState.RUNNING])
        assert [each.run_seq > 0 for each in node.placements] == [True]
        assert node.held[task.task_id][0].attempt == 1


async def test_a_placement_whose_record_stands_and_that_could_not_be_stored_is_placed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with town(MemoryWorld()) as place:
        node = await served(place, hears_ahead=False)
        placement, tries = RunStore.placement, 0

        async def fails_once(store: RunStore, record: RunRecord, run_seq: int) -> None:
            nonlocal tries
            tries += 1
            if tries == 1:
                raise Unanswered(f"the placement of {record.task_id}")
            await placement(store, record, run_seq)

        monkeypatch.setattr(RunStore, "placement", fails_once)
        task = request()
        await place.client.admit(task)
        await eventually(lambda: task.task_id in node.held)
        assert tries == 2
        assert node.held[task.task_id][0].attempt == 1


async def test_a_record_that_is_over_the_servers_limit_ends_its_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its signal may have been just within."""
    async with town(MemoryWorld()) as place:
        node = await served(place, hears_ahead=False)

        async def too_large(_: RunStore, record: RunRecord, expect_seq: int) -> int:
            if record.state is TaskState.PLACED:
                raise TooLarge(f"the record of {record.task_id}")
            return await recorded(_, record, expect_seq)

        recorded = RunStore.record
        monkeypatch.setattr(RunStore, "record", too_large)
        task = request()
        await place.client.admit(task)
        await eventually(lambda: place.client.finals.get(task.task_id) == [TaskState.FAILED])
        assert not node.placements


async def test_a_task_that_has_ended_when_its_record_is_late_is_on_record_as_placed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its claim came while its record was being stored."""
    monkeypatch.setattr(unclaimed, "MOMENT_S", 0.0)
    async with town(MemoryWorld()) as place:
        node = await served(place)
        node.claiming = False
        asked, let, record = asyncio.Event(), asyncio.Event(), RunStore.record

        async def late(runs: RunStore, run: RunRecord, expect_seq: int) -> int:
            asked.set()
            await let.wait()
            return await record(runs, run, expect_seq)

        monkeypatch.setattr(RunStore, "record", late)
        task = request()
        await place.client.admit(task)
        await asyncio.wait_for(asked.wait(), 10)
        await eventually(lambda: bool(node.placements))
        await node._claim(node.placements[0])
        await node.end(task.task_id)
        await eventually(lambda: place.client.finals.get(task.task_id) == [TaskState.DONE])
        let.set()
        await until_free(place)
        await asyncio.wait_for(place.processes[0].leave(), 20)
        assert "placed" in await place.client.audited(task.task_id)


async def test_a_claim_of_a_placement_that_nobody_confirmed_is_on_record_as_placed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its task is placed again otherwise."""
    async with town(MemoryWorld()) as place:
        node = await served(place, Limits(pause_ms=60_000), takes_ahead=False)
        node.claiming = False
        sends, failed = RunStore.placement, asyncio.Event()

        async def lost(runs: RunStore, record: RunRecord, run_seq: int) -> None:
            await sends(runs, record, run_seq)
            failed.set()
            raise Unanswered(f"the placement of {record.task_id}")

        monkeypatch.setattr(RunStore, "placement", lost)
        task = request()
        await place.client.admit(task)
        await failed.wait()
        await eventually(lambda: bool(node.placements))
        (placement,) = node.placements
        await node._claim(placement)
        await until_free(place)
        await becomes_true(lambda: is_placed(place, task))
        await asyncio.wait_for(place.processes[0].leave(), 20)
        (placed,) = await place.client.bus.replay(streams.AUD, subjects.audit("placed", task.task_id))
        record = AUDIT_DECODER.decode(placed.data)
        assert (record.at_ms, record.run_seq) == (placement.run.placed_ms, placement.run_seq)


async def is_placed(town_: Town, task: TaskRequest) -> bool:
    return "placed" in await town_.client.audited(task.task_id)


async def test_its_own_record_is_confirmed_by_the_write_and_others_end_the_wait() -> None:
    """A write whose answer is late may be heard of before it is repeated; its task waits for its answer."""
    core = World()
    core.replica("r1", takes_ahead=True)
    (effect,) = [each for each in core.admit(1) if isinstance(each, Place)]
    late: list[Place] = []
    recorded: list[Place] = []
    waiting = Unclaimed(late=late.append, recorded=lambda place, _: recorded.append(place))
    waiting.not_recorded(effect)
    waiting.run_changed(effect.record)
    waiting.hand_over()
    assert (late, recorded) == ([effect], [])
    waiting.not_recorded(effect)
    waiting.run_changed(msgspec.structs.replace(effect.record, state=TaskState.RUNNING))
    waiting.hand_over()
    assert (late, recorded) == ([effect], [effect])


async def test_a_task_that_ended_before_is_neither_run_nor_told_to_be_placed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moment_s = unclaimed.MOMENT_S
    monkeypatch.setattr(unclaimed, "MOMENT_S", LONG_S)
    async with town(MemoryWorld()) as place:
        node, seen = await served(place), await Seen().follow(place)
        task = request()
        await place.client.admit(task)
        await eventually(lambda: task.task_id in node.held)
        await node.end(task.task_id)
        await until_free(place)
        monkeypatch.setattr(unclaimed, "MOMENT_S", moment_s)
        await place.client.publish("p1", task.priority, msgspec.json.encode(task))
        await until_free(place)
        await eventually(lambda: len(node.placements) == 2)
        assert seen[task.task_id] == [TaskState.RUNNING, TaskState.DONE]
        await asyncio.wait_for(place.processes[0].leave(), 20)
        assert (await place.client.audited(task.task_id)).count("placed") == 1
        assert node.claims.count(task.task_id) == 1
