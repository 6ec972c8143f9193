"""The scheduler on the in-memory bus: what clients, nodes and other schedulers see of it."""

import asyncio
import time

import msgspec
import pytest

from llorch_scheduler import unaudited_changes
from llorch_scheduler.audit_repair import repair_audit
from llorch_scheduler.core.limits import Limits
from llorch_shared import streams, subjects
from llorch_shared.audit import Audit
from llorch_shared.bus.port import Full, NoResponder
from llorch_shared.errors import ErrorCode
from llorch_shared.waiting import expect
from llorch_shared.wire.audit import AUDIT_DECODER, AuditEvent
from llorch_shared.wire.desired import PoolReload, ReloadState, Tenant
from llorch_shared.wire.frames import Kind, encode_metrics, encode_token, peek
from llorch_shared.wire.frames import Metrics as FrameMetrics
from llorch_shared.wire.registry import FLOOR_DECODER, LOAD_DECODER, PoolLoad, ReplicaState
from llorch_shared.wire.run import LOCATED_DECODER, Located, RunRecord
from llorch_shared.wire.task import Priority, TaskRef, TaskState
from scheduler.world import Town, pool_spec, request, settings, town
from support.bus_worlds import MemoryWorld, becomes_true, eventually


async def _depth(town_: Town, pool: str = "p1", priority: Priority = Priority.INTERACTIVE) -> int:
    return (await town_.client.bus.stream_state(streams.admission_stream(pool, priority))).messages


async def _locate(town_: Town, task_id: str, pool: str = "p1") -> Located:
    message = await town_.client.bus.request(
        subjects.locate(subjects.shard_of(pool)), msgspec.json.encode(TaskRef(task_id=task_id))
    )
    return LOCATED_DECODER.decode(message.data)


async def test_an_admitted_task_is_placed_claimed_and_its_place_is_given_back() -> None:
    async with town(MemoryWorld()) as place:
        await place.scheduler()
        node = await place.node()
        task = request()
        await place.client.admit(task)
        await eventually(lambda: task.task_id in node.held)
        await becomes_true(lambda: _is(_depth(place), 0))
        run = await place.client.run_of(task.task_id)
        assert run is not None
        assert (run.state, run.replica_id, run.lane, run.attempt) == (TaskState.RUNNING, node.replica, "gw-1", 1)
        assert run.request == task
        await node.end(task.task_id)
        await becomes_true(lambda: _includes(place.client.audited(task.task_id), "placed"))
        (placed,) = await place.client.bus.replay(streams.AUD, subjects.audit("placed", task.task_id))
        assert AUDIT_DECODER.decode(placed.data).at_ms == run.placed_ms, "the decision, not the ack that it waited for"


async def _is(value: object, wanted: object) -> bool:
    return await value == wanted  # type: ignore[misc]


async def _includes(value: object, wanted: object) -> bool:
    return wanted in await value  # type: ignore[misc]


async def test_never_more_than_its_slots_are_in_flight_on_a_replica() -> None:
    async with town(MemoryWorld()) as place:
        await place.scheduler()
        node = await place.node(slots=3)
        node.ends_at_once = True
        tasks = [request() for _ in range(40)]
        for task in tasks:
            await place.client.admit(task)
        await eventually(lambda: len(place.client.finals) == 40)
        assert node.held_max <= 3
        assert all(states == [TaskState.DONE] for states in place.client.finals.values())
        assert node.claims == [task.task_id for task in tasks], "not in order of admission"


async def test_a_full_queue_refuses_and_has_room_again_after_a_placement() -> None:
    async with town(MemoryWorld(), pool_spec(capacity=2)) as place:
        await place.scheduler()
        tasks = [request() for _ in range(4)]
        await place.client.admit(tasks[0])
        await place.client.admit(tasks[1])
        with pytest.raises(Full):
            await place.client.admit(tasks[2])
        node = await place.node(slots=1)
        await eventually(lambda: tasks[0].task_id in node.held)
        await becomes_true(lambda: _is(_depth(place), 1))
        await place.client.admit(tasks[2])
        with pytest.raises(Full):
            await place.client.admit(tasks[3])


async def test_a_queued_task_that_is_cancelled_ends_once_and_frees_its_place() -> None:
    async with town(MemoryWorld()) as place:
        await place.scheduler()
        task = request()
        await place.client.admit(task)
        await place.client.cancel(task.task_id)
        await place.client.cancel(task.task_id)
        await eventually(lambda: task.task_id in place.client.frames)
        run = await place.client.run_of(task.task_id)
        assert run is not None
        assert (run.state, run.finish_reason, run.request) == (TaskState.CANCELLED, "cancelled", None)
        assert peek(place.client.frames[task.task_id][0]).kind is Kind.END
        await becomes_true(lambda: _is(_depth(place), 0))
        node = await place.node()
        other = request()
        await place.client.admit(other)
        await eventually(lambda: other.task_id in node.claims)
        assert node.claims == [other.task_id]
        assert place.client.finals[task.task_id] == [TaskState.CANCELLED]


async def test_a_deadline_that_passes_in_the_queue_ends_the_task_with_an_error_frame() -> None:
    async with town(MemoryWorld()) as place:
        await place.scheduler()
        task = request(deadline_ms=150)
        await place.client.admit(task)
        await eventually(lambda: task.task_id in place.client.frames)
        run = await place.client.run_of(task.task_id)
        assert run is not None
        assert run.state is TaskState.EXPIRED
        assert run.error is not None
        assert run.error.code is ErrorCode.DEADLINE_UNMET
        frame = place.client.frames[task.task_id][0]
        assert peek(frame).kind is Kind.ERROR
        assert b'"DEADLINE_UNMET"' in frame


async def test_a_bus_client_needs_only_the_json() -> None:
    async with town(MemoryWorld()) as place:
        await place.scheduler()
        node = await place.node()
        task = request()
        await place.client.publish("p1", "interactive", msgspec.json.encode(task), lane="")
        await eventually(lambda: task.task_id in node.held)
        run = await place.client.run_of(task.task_id)
        assert run is not None
        assert (run.lane, run.channel, run.correlation_id) == (subjects.bus_lane("default"), "nats", task.task_id)
        await becomes_true(lambda: _includes(place.client.audited(task.task_id), "admitted"))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"model_ref": "mock:other"}, ErrorCode.INVALID_PARAMS),
        ({"ctx": 8192}, ErrorCode.INVALID_PARAMS),
        ({"deadline_ms": 0}, ErrorCode.DEADLINE_UNMET),
        ({"prompt": None, "inputs": None}, ErrorCode.INVALID_PARAMS),
    ],
    ids=["model", "ctx", "deadline", "content"],
)
async def test_what_a_bus_client_may_not_ask_ends_typed_and_blocks_nobody(
    change: dict[str, object], code: ErrorCode
) -> None:
    async with town(MemoryWorld()) as place:
        await place.scheduler()
        node = await place.node()
        bad, good = request(**change), request()
        await place.client.admit(bad)
        await place.client.admit(good)
        await eventually(lambda: good.task_id in node.held and bad.task_id in place.client.frames)
        run = await place.client.run_of(bad.task_id)
        assert run is not None
        assert run.error is not None
        assert (run.state, run.error.code) == (TaskState.FAILED, code)
        await becomes_true(lambda: _includes(place.client.audited(bad.task_id), "failed"))
        assert bad.task_id not in node.claims


async def test_garbage_is_answered_when_it_names_a_task_and_dropped_when_it_does_not() -> None:
    async with town(MemoryWorld()) as place:
        await place.scheduler()
        node = await place.node()
        named, by_header = request().task_id, request().task_id
        await place.client.publish("p1", "interactive", b'{"task_id":"%b","colour":1}' % named.encode())
        await place.client.publish("p1", "interactive", b"\xff\xfe", msg_id=by_header)
        await place.client.publish("p1", "interactive", b"[]")
        good = request()
        await place.client.admit(good)
        await eventually(lambda: good.task_id in node.held)
        await eventually(lambda: len(place.client.finals) == 2)
        assert place.client.finals == {named: [TaskState.FAILED], by_header: [TaskState.FAILED]}
        await becomes_true(lambda: _is(_depth(place), 0))


async def test_one_task_admitted_to_two_queues_runs_once() -> None:
    async with town(MemoryWorld()) as place:
        await place.scheduler()
        task = request()
        await place.client.admit(task)
        await place.client.publish("p1", "batch", msgspec.json.encode(task))
        node = await place.node()
        await eventually(lambda: task.task_id in node.held)
        await node.end(task.task_id)
        await place.client.publish("p1", "batch", msgspec.json.encode(task))
        await becomes_true(lambda: _is(_depth(place, priority=Priority.BATCH), 0))
        await becomes_true(lambda: _is(_depth(place), 0))
        assert node.claims == [task.task_id]
        assert place.client.finals == {task.task_id: [TaskState.DONE]}


async def test_a_task_of_an_engine_that_died_runs_again_as_another_attempt() -> None:
    async with town(MemoryWorld()) as place:
        await place.scheduler()
        node = await place.node()
        task = request()
        await place.client.admit(task)
        await eventually(lambda: task.task_id in node.held)
        await node.engine_dies()
        await eventually(lambda: node.claims == [task.task_id, task.task_id])
        run = await place.client.run_of(task.task_id)
        assert run is not None
        assert run.attempt == 2
        await becomes_true(lambda: _includes(place.client.audited(task.task_id), "requeued"))


async def test_a_task_that_kills_every_engine_fails_after_its_attempts() -> None:
    async with town(MemoryWorld()) as place:
        await place.scheduler(settings(attempts_max=2))
        node = await place.node()
        task = request()
        await place.client.admit(task)
        for times in (1, 2):
            await eventually(lambda times=times: len(node.claims) == times and bool(node.held))
            await node.engine_dies()
        await eventually(lambda: task.task_id in place.client.finals)
        run = await place.client.run_of(task.task_id)
        assert run is not None
        assert run.error is not None
        assert (run.state, run.error.code) == (TaskState.FAILED, ErrorCode.WORKER_RESET)


async def test_the_end_of_a_task_that_ran_before_counts_what_its_readers_have() -> None:
    async with town(MemoryWorld()) as place:
        await place.scheduler(settings(attempts_max=1))
        node = await place.node()
        task = request()
        await place.client.admit(task)
        await eventually(lambda: bool(node.held))
        for index in range(4):
            place.client.bus.publish(subjects.tokens("gw-1", task.task_id), encode_token(1, index, " w"))
        anew = encode_metrics(FrameMetrics(attempt=1, kv_migrated=False, restarted_at=3))
        place.client.bus.publish(subjects.tokens("gw-1", task.task_id), anew)
        await node.engine_dies()
        await eventually(lambda: task.task_id in place.client.finals)
        run = await place.client.run_of(task.task_id)
        assert run is not None
        assert (run.state, run.tokens_out, run.restarted_at) == (TaskState.FAILED, 4, 3)
        await eventually(lambda: peek(place.client.frames[task.task_id][-1]).kind is Kind.ERROR)
        assert peek(place.client.frames[task.task_id][-1]).last == 4


async def test_an_end_whose_scheduler_died_before_the_audit_is_audited_by_the_next() -> None:
    async with town(MemoryWorld()) as place:
        ended = RunRecord(
            task_id=request().task_id,
            state=TaskState.CANCELLED,
            pool_id="p1",
            lane="gw-1",
            correlation_id="c",
            tenant="default",
            priority=Priority.INTERACTIVE,
            admitted_ms=1,
            ended_ms=time.time_ns() // 1_000_000,
        )
        by_a_node = msgspec.structs.replace(ended, task_id=request().task_id, node_id="n", incarnation="i")
        known = msgspec.structs.replace(ended, task_id=request().task_id)
        for record in (ended, by_a_node, known):
            await place.client.bus.store(subjects.run(record.task_id), msgspec.json.encode(record))
        await place.client.bus.store(subjects.audit("cancelled", known.task_id), b"{}")
        audit = Audit(place.client.bus, actor="test", gather_s=0)
        audit.start()
        looked_at: list[RunRecord] = []

        async def repair(before_seq: int) -> int:
            return await repair_audit(
                place.client.bus,
                subjects.shard_of("p1"),
                audit,
                before_seq=before_seq,
                actor="scheduler/2",
                now_ms=lambda: ended.ended_ms,
                ended=looked_at.append,
                after_s=0,
            )

        assert await repair(before_seq=0) == 0, "what comes after the takeover is its own to audit"
        assert await repair(before_seq=3) == 1
        assert looked_at == [ended, by_a_node, known]
        await audit.close()
        assert await repair(before_seq=3) == 0
        assert await place.client.audited(ended.task_id) == ["cancelled"]
        assert await place.client.audited(by_a_node.task_id) == []


async def test_who_is_in_office_tells_what_changes_without_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unaudited_changes, "LOOK_EVERY_S", 0.01)
    async with town(MemoryWorld()) as place:
        process = await place.scheduler()
        await eventually(lambda: process.active)
        await place.client.want(pool_spec(capacity=9))
        subject = subjects.audit(AuditEvent.POOL_CHANGED, "p1")

        async def audited() -> bool:
            messages = await place.client.bus.replay(streams.AUD, subject)
            changes = [AUDIT_DECODER.decode(message.data).detail["changes"] for message in messages]
            return ["queue.capacity: 64 -> 9"] in changes

        await becomes_true(audited)


async def test_the_limits_of_a_tenant_count_in_every_pool_while_they_stand() -> None:
    key = subjects.spec(subjects.tenant_key("default"))
    async with town(MemoryWorld()) as place:
        bus = place.client.bus
        for foreign in (subjects.tenant_key("other"), subjects.pool_key("other"), subjects.SESSION_POLICY_KEY):
            await bus.store(subjects.spec(foreign), b'{"id":"\xff"}')
        await bus.store(key, msgspec.json.encode(Tenant(id="default", max_concurrent=1)))
        await place.scheduler()
        node = await place.node(slots=3)
        tasks = [request() for _ in range(3)]
        for task in tasks:
            await place.client.admit(task)

        def held_back(queued: int) -> bool:
            line = msgspec.json.decode(place.client.loads[-1], type=PoolLoad).classes.get("interactive")
            flow = line.flows.get("default") if line is not None else None
            return flow is not None and flow.throttled and flow.queued == queued

        await eventually(lambda: bool(place.client.loads) and held_back(2))
        assert node.held_max <= 1
        await bus.store(key, msgspec.json.encode(Tenant(id="default", max_concurrent=2)))
        await eventually(lambda: held_back(1))
        assert node.held_max <= 2
        await bus.store(key, b"", headers={"KV-Operation": "DEL"})
        await eventually(lambda: len(node.held) == 3)


async def test_a_task_that_waited_while_its_pool_got_another_model_is_served_by_that() -> None:
    async with town(MemoryWorld()) as place:
        task, bus = request(), place.client.bus
        await bus.ensure(streams.admission(pool_spec()))
        await place.client.admit(task)
        reload = PoolReload(
            id="r1",
            pool_id="p1",
            new_model_ref="mock:other",
            old_model_ref=task.model_ref,
            state=ReloadState.UNDERWAY,
            requested_ms=1,
        )
        await bus.store(subjects.spec(subjects.reload_key("p1")), msgspec.json.encode(reload))
        await place.client.want(msgspec.structs.replace(pool_spec(), model="mock:other"))
        node = await place.node(model="mock:other")
        await place.scheduler()
        await eventually(lambda: task.task_id in node.held)


async def test_after_a_restart_an_idle_system_promises_no_wait() -> None:
    async with town(MemoryWorld()) as place:
        first = await place.scheduler()
        node = await place.node()
        node.ends_at_once = True
        tasks = [request() for _ in range(5)]
        for task in tasks:
            await place.client.admit(task)
        await eventually(lambda: len(place.client.finals) == len(tasks))
        await first.leave()
        place.client.loads.clear()
        await place.scheduler()
        await eventually(lambda: bool(place.client.loads))
        load = LOAD_DECODER.decode(place.client.loads[0])
        stored = await place.client.admit(request())
        assert expect(load, Priority.INTERACTIVE, "default", stored.seq).position == 0


async def test_a_lost_node_gives_its_tasks_to_another_and_can_no_longer_end_them() -> None:
    async with town(MemoryWorld()) as place:
        await place.scheduler()
        lost = await place.node(replica="p1-a-0", slots=1)
        task = request()
        await place.client.admit(task)
        await eventually(lambda: task.task_id in lost.held)
        other = await place.node(replica="p1-b-0", slots=1)
        await lost.stop()
        await eventually(lambda: task.task_id in other.held)
        assert not await lost.end(task.task_id)
        assert await other.end(task.task_id)
        await eventually(lambda: task.task_id in place.client.finals)
        assert place.client.finals == {task.task_id: [TaskState.DONE]}


async def test_a_placement_nobody_claims_is_taken_back() -> None:
    async with town(MemoryWorld()) as place:
        await place.scheduler(limits=Limits(claim_ms=300, upkeep_ms=50))
        idle = await place.node(replica="p1-a-0", slots=1)
        idle.claiming = False
        task = request()
        await place.client.admit(task)
        await eventually(lambda: len(idle.placements) == 1)
        other = await place.node(replica="p1-b-0", slots=1)
        idle.state = ReplicaState.DRAINING
        await idle.report()
        await eventually(lambda: task.task_id in other.held)


async def test_the_load_tells_depth_and_slots() -> None:
    async with town(MemoryWorld()) as place:
        await place.scheduler()
        node = await place.node(slots=2)
        for _ in range(5):
            await place.client.admit(request())
        await eventually(lambda: len(node.held) == 2)

        def told() -> bool:
            load = LOAD_DECODER.decode(place.client.loads[-1])
            return load.queued["interactive"] == 3 and load.running == 2 and load.slots_free == 0

        await eventually(lambda: bool(place.client.loads) and told())
        load = LOAD_DECODER.decode(place.client.loads[-1])
        assert (load.slots_total, load.replicas_ready, load.queue_seq["interactive"]) == (2, 1, 5)


async def test_a_queued_task_is_located_and_an_unknown_one_is_denied_with_certainty() -> None:
    async with town(MemoryWorld()) as place:
        await place.scheduler()
        first, second = request(), request()
        await place.client.admit(first)
        await place.client.admit(second)
        found = await _locate(place, second.task_id)
        assert (found.found, found.pool_id, found.queue_position, found.lane) == (True, "p1", 1, "gw-1")
        assert not (await _locate(place, request().task_id)).found


async def test_a_standby_takes_over_when_the_active_one_is_killed_and_nothing_is_lost() -> None:
    async with town(MemoryWorld()) as place:
        first = await place.scheduler(settings(lease_ttl_ms=1000))
        node = await place.node(slots=2)
        await eventually(lambda: first.active)
        second = await place.scheduler(settings(lease_ttl_ms=1000))
        tasks = [request() for _ in range(10)]
        for task in tasks:
            await place.client.admit(task)
        await eventually(lambda: len(node.held) == 2)
        await first.kill()
        await eventually(lambda: second.active)
        node.ends_at_once = True
        for task_id in list(node.held):
            await node.end(task_id)
        await eventually(lambda: len(place.client.finals) == 10)
        assert all(states == [TaskState.DONE] for states in place.client.finals.values())
        assert sorted(node.claims) == sorted(task.task_id for task in tasks)


async def test_a_scheduler_that_leaves_in_order_hands_over_at_once() -> None:
    async with town(MemoryWorld()) as place:
        first = await place.scheduler(settings(lease_ttl_ms=600_000))
        await eventually(lambda: first.active)
        second = await place.scheduler(settings(lease_ttl_ms=600_000))
        await first.leave()
        await eventually(lambda: second.active)
        assert not first.active


async def test_only_the_active_one_answers_and_a_standby_places_nothing() -> None:
    async with town(MemoryWorld()) as place:
        first = await place.scheduler()
        await eventually(lambda: first.active)
        second = await place.scheduler()
        node = await place.node()
        await place.client.admit(request())
        await eventually(lambda: len(node.held) == 1)
        assert second.scheduler.terms == {}
        await first.leave()
        await second.leave()
        with pytest.raises(NoResponder):
            await _locate(place, request().task_id)


async def test_it_steps_down_when_its_connection_breaks_and_returns_with_it() -> None:
    async with town(MemoryWorld()) as place:
        process = await place.scheduler()
        node = await place.node(slots=1)
        await eventually(lambda: process.active)
        tasks = [request() for _ in range(3)]
        for task in tasks:
            await place.client.admit(task)
        await eventually(lambda: len(node.held) == 1)
        process.bus.break_connection()  # type: ignore[attr-defined]
        await eventually(lambda: not process.active)
        node.ends_at_once = True
        await node.end(tasks[0].task_id)
        process.bus.restore_connection()  # type: ignore[attr-defined]
        await eventually(lambda: len(place.client.finals) == 3)
        assert node.claims == [task.task_id for task in tasks]


@pytest.mark.parametrize("turn", range(12))
async def test_a_cancel_against_a_placement_has_one_winner(turn: int) -> None:
    async with town(MemoryWorld()) as place:
        await place.scheduler()
        node = await place.node(slots=1)
        task = request()
        await place.client.admit(task)
        for _ in range(turn):
            await asyncio.sleep(0)
        await place.client.cancel(task.task_id)
        await eventually(lambda: task.task_id in node.held or task.task_id in place.client.finals)
        if task.task_id in node.held:
            assert await node.end(task.task_id)
            await eventually(lambda: task.task_id in place.client.finals)
            assert place.client.finals[task.task_id] == [TaskState.DONE]
            assert task.task_id not in place.client.frames
        else:
            assert place.client.finals[task.task_id] == [TaskState.CANCELLED]
            assert node.claims == []


async def test_stores_whose_answer_gets_lost_are_recognised_as_its_own() -> None:
    world = MemoryWorld()
    async with town(world) as place:
        await place.scheduler()
        node = await place.node(slots=1)
        node.ends_at_once = True
        for _ in range(6):
            world.server.answers_lost = 1
            await place.client.admit(request())
        await eventually(lambda: len(place.client.finals) == 6)
        assert len(set(node.claims)) == len(node.claims) == 6


async def test_a_pool_added_later_is_served_and_a_removed_one_keeps_its_tasks() -> None:
    async with town(MemoryWorld()) as place:
        process = await place.scheduler()
        await eventually(lambda: process.active)
        await place.client.want(pool_spec("p2"))
        task = request()
        await place.client.admit(task, pool="p2")
        assert (await _locate(place, task.task_id, "p2")).pool_id == "p2"
        await place.client.bus.store(subjects.spec(subjects.pool_key("p2")), b"", headers={"KV-Operation": "DEL"})
        node = await place.node(pool="p2", replica="p2-a-0")
        assert (await _locate(place, task.task_id, "p2")).found
        await place.client.want(pool_spec("p2"))
        await eventually(lambda: task.task_id in node.held)


async def test_a_takeover_does_not_read_runs_that_ended_long_ago() -> None:
    async with town(MemoryWorld()) as place:
        first = await place.scheduler()
        node = await place.node()
        node.ends_at_once = True
        for _ in range(5):
            await place.client.admit(request())
        await eventually(lambda: len(place.client.finals) == 5)

        async def floor() -> int:
            message = await place.client.bus.last(
                streams.REG, subjects.registry(subjects.floor_key(subjects.shard_of("p1")))
            )
            return FLOOR_DECODER.decode(message.data).seq if message else 0

        last_seq = (await place.client.bus.stream_state(streams.RUN)).last_seq
        await becomes_true(lambda: _is(floor(), last_seq + 1))
        await first.leave()
        second = await place.scheduler()
        await eventually(lambda: second.active)
        assert second.scheduler.terms[subjects.shard_of("p1")].core.jobs == {}
