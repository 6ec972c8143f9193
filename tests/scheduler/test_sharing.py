"""Several scheduler processes share the pools: who decides for which, and what moves when one comes, goes or dies."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import msgspec
import pytest

from llorch_scheduler import unaudited_changes
from llorch_scheduler.unaudited_changes import UnauditedChanges
from llorch_shared import streams, subjects
from llorch_shared.bus.port import NoResponder, WrongSequence
from llorch_shared.wire.registry import (
    APPOINTMENT_DECODER,
    LEASE_DECODER,
    SCHEDULER_DECODER,
    AppointmentRequest,
    LeaseRecord,
)
from llorch_shared.wire.run import LOCATED_DECODER
from llorch_shared.wire.task import Priority, TaskRef, TaskState
from llorch_shared.wire.version import VERSION_HEADER
from scheduler.world import Node, Process, Town, pool_spec, request, settings, town
from support.bus_worlds import MemoryWorld, NatsWorld, World, becomes_true, eventually

POOLS = ("p0", "p1", "p2", "p3", "p5", "p6")
"""Each on a shard of its own."""
SHARDS = frozenset(map(subjects.shard_of, POOLS))
assert len(SHARDS) == len(POOLS)

STEADY = settings(lease_ttl_ms=600_000)
"""However long the machine stands still, nobody loses a shard by it."""
MORTAL = settings(lease_ttl_ms=5_000)
"""Where a lease must expire, or be found lost at its renewal."""


@pytest.fixture(params=["memory", pytest.param("nats", marks=pytest.mark.nats)])
def world(request: pytest.FixtureRequest) -> World:
    return NatsWorld(request.getfixturevalue("nats_server")) if request.param == "nats" else MemoryWorld()


@pytest.fixture
async def place(world: World) -> AsyncIterator[Town]:
    """Six pools, each on a shard of its own."""
    async with town(world, *map(pool_spec, POOLS)) as made:
        yield made


async def shared(*processes: Process) -> None:
    """Wait until the shards are shared as evenly as they can be."""
    most = -(-len(SHARDS) // len(processes))

    def evenly() -> bool:
        held = [process.shards for process in processes]
        return frozenset().union(*held) == SHARDS and max(map(len, held)) <= most

    await eventually(evenly)


async def node_of(place: Town, pool: str, **fields: object) -> Node:
    return await place.node(pool=pool, replica=f"{pool}-a-0", **fields)


async def admitted(place: Town, pool: str, count: int = 1) -> list[str]:
    tasks = [request() for _ in range(count)]
    for task in tasks:
        await place.client.admit(task, pool=pool)
    return [task.task_id for task in tasks]


async def test_two_share_the_pools_and_each_place_only_their_own(place: Town) -> None:
    first, second = await place.scheduler(STEADY), await place.scheduler(STEADY)
    await shared(first, second)
    assert not first.shards & second.shards
    nodes = {pool: await node_of(place, pool) for pool in POOLS}
    tasks = {pool: (await admitted(place, pool))[0] for pool in POOLS}
    for pool, task in tasks.items():
        await eventually(lambda pool=pool, task=task: task in nodes[pool].held)
        holder = first if subjects.shard_of(pool) in first.shards else second
        assert task in holder.scheduler.terms[subjects.shard_of(pool)].core.jobs
    known = [
        task for process in (first, second) for loop in process.scheduler.terms.values() for task in loop.core.jobs
    ]
    assert sorted(known) == sorted(tasks.values()), "somebody knows a task of another shard"


async def test_a_newcomer_gets_its_part_and_the_tasks_in_it_go_on(place: Town) -> None:
    first = await place.scheduler(STEADY)
    await shared(first)
    nodes = {pool: await node_of(place, pool, slots=1) for pool in POOLS}
    tasks = {pool: await admitted(place, pool, 4) for pool in POOLS}
    await eventually(lambda: all(node.held for node in nodes.values()))
    second = await place.scheduler(STEADY)
    pacing = asyncio.create_task(end_slowly(list(nodes.values())))
    await shared(first, second)
    every = [task for listed in tasks.values() for task in listed]
    await eventually(lambda: len(place.client.finals) == len(every))
    pacing.cancel()
    assert all(states == [TaskState.DONE] for states in place.client.finals.values())
    for pool in POOLS:
        assert nodes[pool].claims == tasks[pool], "claimed again, or not in order of admission"
        assert nodes[pool].held_max == 1


async def end_slowly(nodes: list[Node]) -> None:
    """So that tasks end and start while shards move."""
    while True:
        for node in nodes:
            for task in list(node.held):
                assert await node.end(task)
        await asyncio.sleep(0.25)


async def test_one_of_the_shards_that_have_pools_looks_for_what_is_not_audited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked: Counter[UnauditedChanges] = Counter()

    async def look(office: UnauditedChanges) -> int:
        looked[office] += 1
        return 0

    monkeypatch.setattr(unaudited_changes, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(UnauditedChanges, "look", look)
    pools = [pool for pool in POOLS if subjects.shard_of(pool) > 0]
    async with town(MemoryWorld(), *map(pool_spec, pools)) as place:
        process = await place.scheduler()
        await eventually(lambda: process.shards == SHARDS - {0})
        looked.clear()
        await eventually(lambda: looked.total() >= 3)
        assert len(looked) == 1


async def test_a_killed_processs_shards_move_and_only_those(place: Town) -> None:
    first, second, third = [await place.scheduler(MORTAL) for _ in range(3)]
    await shared(first, second, third)
    nodes = {pool: await node_of(place, pool, slots=1) for pool in POOLS}
    tasks = {pool: await admitted(place, pool, 3) for pool in POOLS}
    await eventually(lambda: all(node.held for node in nodes.values()))
    epochs = {shard: loop.term.epoch for p in (second, third) for shard, loop in p.scheduler.terms.items()}
    moved = first.shards
    await first.kill()
    await eventually(lambda: second.shards | third.shards == SHARDS)
    for process in (second, third):
        for shard, loop in process.scheduler.terms.items():
            assert shard in moved or loop.term.epoch == epochs[shard], "a shard of a living process began anew"
    for node in nodes.values():
        node.ends_at_once = True
        for task in list(node.held):
            assert await node.end(task)
    every = [task for listed in tasks.values() for task in listed]
    await eventually(lambda: len(place.client.finals) == len(every))
    assert all(states == [TaskState.DONE] for states in place.client.finals.values())
    assert all(nodes[pool].claims == tasks[pool] for pool in POOLS)


async def test_one_that_leaves_in_order_is_replaced_before_its_leases_would_expire(place: Town) -> None:
    first, second = [await place.scheduler(STEADY) for _ in range(2)]
    await shared(first, second)
    await first.leave()
    await eventually(lambda: second.shards == SHARDS)


async def test_a_pool_that_appears_later_on_a_new_shard_is_taken(place: Town) -> None:
    first, second = await place.scheduler(STEADY), await place.scheduler(STEADY)
    await shared(first, second)
    late = next(f"late{n}" for n in range(100) if subjects.shard_of(f"late{n}") not in SHARDS)
    shard = subjects.shard_of(late)
    with pytest.raises(NoResponder):
        await place.client.bus.request(subjects.locate(shard), b"")
    await place.client.want(pool_spec(late))
    await eventually(lambda: shard in first.shards | second.shards)
    node = await node_of(place, late)
    (task,) = await admitted(place, late)
    await eventually(lambda: task in node.held)


async def test_each_shard_answers_for_its_own_pools(place: Town) -> None:
    first, second = await place.scheduler(STEADY), await place.scheduler(STEADY)
    await shared(first, second)
    (task,) = await admitted(place, "p1")

    async def found(shard: int) -> bool:
        answer = await place.client.bus.request(subjects.locate(shard), msgspec.json.encode(TaskRef(task_id=task)))
        return LOCATED_DECODER.decode(answer.data).found

    assert {shard for shard in SHARDS if await found(shard)} == {subjects.shard_of("p1")}


async def test_a_client_may_ask_for_an_appointment(place: Town) -> None:
    await shared(await place.scheduler(STEADY))
    asked = AppointmentRequest(task_id="t", pool_id="p1", priority=Priority.BATCH, tenant="default")
    subject = subjects.appoint(subjects.shard_of("p1"))
    answer = await place.client.bus.request(subject, msgspec.json.encode(asked))
    assert APPOINTMENT_DECODER.decode(answer.data).admit


async def test_a_holder_whose_lease_was_taken_stops_at_once_and_its_writes_are_refused(place: Town) -> None:
    """As after a pause of the whole process: it wakes up as the holder of a lease that another has."""
    process = await place.scheduler(MORTAL)
    await shared(process)
    node = await node_of(place, "p1")
    await eventually(lambda: any(process.scheduler.terms[subjects.shard_of("p1")].core.pools["p1"].read))
    shard = subjects.shard_of("p1")
    loop = process.scheduler.terms[shard]
    others = process.shards - {shard}
    thief = msgspec.json.encode(LeaseRecord(holder="thief", epoch=loop.term.epoch + 1, renewed_ms=0))

    async def steal() -> bool:
        key = subjects.registry(subjects.lease_key(shard))
        message = await place.client.bus.last(streams.REG, key)
        assert message is not None
        try:
            await place.client.bus.store(key, thief, expect_seq=message.seq, ttl_s=2)
        except WrongSequence:
            return False
        return True

    await becomes_true(steal)
    await eventually(lambda: not loop.term.active)
    assert loop.term.reason == "another scheduler took the shard"
    (task,) = await admitted(place, "p1")
    await becomes_true(lambda: held_by_anybody(place, shard, "thief"))
    assert not node.held, "placed by one who had lost the shard"
    assert others <= process.shards, "the other shards were its own all the time"
    await eventually(lambda: task in node.held)


async def held_by_anybody(place: Town, shard: int, holder: str) -> bool:
    message = await place.client.bus.last(streams.REG, subjects.registry(subjects.lease_key(shard)))
    return message is not None and not message.deleted and LEASE_DECODER.decode(message.data).holder == holder


async def test_a_process_is_registered_while_it_lives(place: Town) -> None:
    process = await place.scheduler(STEADY)
    key = subjects.registry(subjects.scheduler_key(process.scheduler.instance))
    await eventually(lambda: process.active)
    message = await place.client.bus.last(streams.REG, key)
    assert message is not None
    assert SCHEDULER_DECODER.decode(message.data).instance == process.scheduler.instance
    await process.leave()
    message = await place.client.bus.last(streams.REG, key)
    assert message is None or message.deleted


async def test_the_floor_of_an_idle_shard_rises_with_the_runs_of_the_others(place: Town) -> None:
    process = await place.scheduler(STEADY)
    await shared(process)
    (waiting,) = await admitted(place, "p2")
    node = await node_of(place, "p1")
    node.ends_at_once = True
    tasks = await admitted(place, "p1", 5)
    await eventually(lambda: set(tasks) <= set(place.client.finals))
    last_seq = (await place.client.bus.stream_state(streams.RUN)).last_seq
    key = subjects.registry(subjects.floor_key(subjects.shard_of("p2")))

    async def floor_is_up() -> bool:
        message = await place.client.bus.last(streams.REG, key)
        return message is not None and msgspec.json.decode(message.data)["seq"] > last_seq

    await becomes_true(floor_is_up)
    assert waiting in process.scheduler.terms[subjects.shard_of("p2")].core.jobs


async def test_a_lease_of_a_newer_release_is_not_taken_while_it_is_renewed() -> None:
    async with town(MemoryWorld()) as place:
        bus, key = place.client.bus, subjects.registry(subjects.lease_key(subjects.shard_of("p1")))
        newer = {VERSION_HEADER: "2"}
        await bus.store(key, b"a lease of tomorrow", headers=newer, ttl_s=3)
        process = await place.scheduler()
        for _ in range(10):
            await asyncio.sleep(0.1)
            assert not process.active
            await bus.store(key, b"a lease of tomorrow", headers=newer, ttl_s=3)
        await eventually(lambda: process.active)
