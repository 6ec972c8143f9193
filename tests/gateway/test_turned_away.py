"""Who is turned away before a queue, by which policy, and when it is told to come back."""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pytest

from llorch_shared import subjects
from llorch_shared.bus.port import Message
from llorch_shared.errors import ErrorCode
from llorch_shared.waiting import expect
from llorch_shared.wire.policy import DeadlineSpec, FullPolicy, QueueSpec
from llorch_shared.wire.registry import (
    APPOINTMENT_REQUEST_DECODER,
    Appointment,
    AppointmentRequest,
    ClassLoad,
    FlowLoad,
    PoolLoad,
)
from llorch_shared.wire.task import Priority, TaskState
from support.asgi import Reply
from support.client import task_request
from support.gateways import POOL, Cluster, Door, cluster_of, load_report, pool_spec, replica, run_record

Answer = Callable[[AppointmentRequest], Appointment]

COME = Appointment(admit=True)
LATER = Appointment(admit=False, retry_after_ms=7_300, promised=True)
NOTHING_PROMISED = Appointment(admit=False, retry_after_ms=9_000)


def full_load(**of_class: object) -> PoolLoad:
    """A backlog of interactive tasks; `of_class` says more about the class."""
    fields = {"queued": 2, "work_ms": 4_000.0, "weight": 8, "flows_weight": 1, **of_class}
    line = msgspec.convert(fields, ClassLoad)
    return load_report(slots_total=2, slots_free=0, service_ms=5_000, classes={"interactive": line})


async def appointing(cluster: Cluster, *answers: Appointment) -> list[AppointmentRequest]:
    """A scheduler that gives these answers, then the last one again and again. Returns what it is asked."""
    asked: list[AppointmentRequest] = []

    async def answer(message: Message) -> tuple[bytes, Mapping[str, str]]:
        asked.append(APPOINTMENT_REQUEST_DECODER.decode(message.data))
        return msgspec.json.encode(answers[min(len(asked), len(answers)) - 1]), {}

    await cluster.bus.serve(subjects.appoint(subjects.shard_of(POOL)), answer)
    return asked


async def submit(door: Door, **changes: object) -> Reply:
    return await door.post("/v1/tasks", msgspec.json.encode(task_request(**changes)))


async def test_while_places_are_promised_the_scheduler_says_who_may_come(cluster: Cluster, door: Door) -> None:
    await cluster.report(full_load(promised=True))
    asked = await appointing(cluster, COME, LATER)
    request = task_request()
    assert (await door.post("/v1/tasks", msgspec.json.encode(request))).status == 202
    assert asked == [
        AppointmentRequest(task_id=request.task_id, pool_id=POOL, priority=Priority.INTERACTIVE, tenant="default")
    ]
    reply = await submit(door)
    assert (reply.status, reply.error.code) == (429, ErrorCode.ADMISSION_REJECT)
    assert (reply.error.policy_label, reply.error.retry_after_ms) == ("reject", 7_300)
    assert (reply.headers["retry-after"], reply.headers["x-backoff-ms"]) == ("8", "7300")
    assert "a place is kept" in reply.error.message
    assert len(await cluster.admissions()) == 1


async def test_nobody_is_asked_while_nothing_is_promised_and_there_is_room(cluster: Cluster, door: Door) -> None:
    await cluster.report(full_load())
    asked = await appointing(cluster, LATER)
    assert (await submit(door)).status == 202
    assert (await submit(door, priority=Priority.BATCH)).status == 202
    assert asked == []


async def test_a_client_the_server_refused_is_given_an_appointment() -> None:
    async with cluster_of(pool_spec(capacity=1), replica()) as cluster:
        door = await cluster.gateway()
        asked = await appointing(cluster, NOTHING_PROMISED)
        await door.submit()
        reply = await submit(door)
        assert (reply.status, reply.error.retry_after_ms) == (429, 9_000)
        assert "kept" not in reply.error.message
        assert [question.refused for question in asked] == [True]


async def test_the_server_has_the_last_word_on_an_appointment() -> None:
    async with cluster_of(pool_spec(capacity=1), replica()) as cluster:
        door = await cluster.gateway()
        await cluster.report(full_load(promised=True))
        asked = await appointing(cluster, COME, LATER)
        await cluster.bus.store(subjects.admission(POOL, "interactive", "t"), b"x")
        reply = await submit(door)
        assert (reply.status, reply.error.retry_after_ms) == (429, 7_300)
        assert [question.refused for question in asked] == [False, True]


async def test_a_scheduler_that_admits_to_a_full_queue_is_not_believed_for_ever() -> None:
    async with cluster_of(pool_spec(capacity=1), replica()) as cluster:
        door = await cluster.gateway()
        asked = await appointing(cluster, COME)
        await door.submit()
        assert (await submit(door)).status == 429
        assert len(asked) == 2


async def test_a_place_that_has_just_come_free_is_taken_after_the_refusal() -> None:
    async with cluster_of(pool_spec(capacity=1), replica()) as cluster:
        door = await cluster.gateway()
        await door.submit()
        durable = await cluster.bus.consumer("ADM_p1_interactive", "sched")

        async def place(message: Message) -> tuple[bytes, Mapping[str, str]]:
            await (await durable.fetch(1, 5))[0].ack()
            return msgspec.json.encode(COME), {}

        await cluster.bus.serve(subjects.appoint(subjects.shard_of(POOL)), place)
        assert (await submit(door)).status == 202


@pytest.mark.parametrize("answer", [b"", b"{}", b'{"admit": "yes"}'])
async def test_without_an_answer_the_server_decides(
    cluster: Cluster, door: Door, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    monkeypatch.setattr("llorch_gateway.enqueue.APPOINT_TIMEOUT_S", 0.05)

    async def mumble(message: Message) -> tuple[bytes, Mapping[str, str]]:
        if not answer:
            raise RuntimeError("stepped down")
        return answer, {}

    await cluster.bus.serve(subjects.appoint(subjects.shard_of(POOL)), mumble)
    await cluster.report(full_load(promised=True))
    assert (await submit(door)).status == 202


async def test_an_accepted_task_stays_accepted_while_others_are_told_to_come_later(
    cluster: Cluster, door: Door
) -> None:
    request = task_request()
    await door.post("/v1/tasks", msgspec.json.encode(request))
    await cluster.report(full_load(promised=True))
    await appointing(cluster, LATER)
    assert (await door.post("/v1/tasks", msgspec.json.encode(request))).status == 202
    ended = task_request()
    await cluster.record(run_record(ended.task_id, TaskState.DONE))
    assert (await door.post("/v1/tasks", msgspec.json.encode(ended))).status == 202
    assert (await submit(door)).status == 429
    assert len(await cluster.admissions()) == 1


async def test_a_class_that_the_circuit_breaker_sheds_is_refused_and_the_other_is_not(
    cluster: Cluster, door: Door
) -> None:
    await cluster.report(full_load(shed="62 % start later than 2000 ms", shed_for_ms=31_000))
    before = await cluster.stored()
    reply = await submit(door)
    assert (reply.status, reply.error.code, reply.error.retriable) == (429, ErrorCode.ADMISSION_REJECT, True)
    assert (reply.error.policy_label, reply.error.pool_id) == ("circuit-breaker", POOL)
    assert (reply.headers["retry-after"], reply.headers["x-backoff-ms"]) == ("31", "31000")
    assert "62 % start later" in reply.error.message
    assert await cluster.stored() == before
    assert (await submit(door, priority=Priority.BATCH)).status == 202


MEASURED: dict[str, Any] = {"service_ms": 1_000.0, "overhead_ms": 200.0, "token_ms": 40.0, "used": 1.0}
"""A task of 20 tokens takes a second."""


async def test_a_deadline_that_will_most_likely_be_missed_is_refused_with_the_predicted_end(
    cluster: Cluster, door: Door
) -> None:
    line = ClassLoad(queued=10, work_ms=10_000, weight=8, flows_weight=1)
    load = load_report(slots_total=1, slots_free=0, classes={"interactive": line}, **MEASURED)
    await cluster.report(load)
    before = await cluster.stored()
    start_ms = round(expect(load, Priority.INTERACTIVE, "default").start_ms)
    assert 8_000 < start_ms < 13_000
    reply = await submit(door, deadline_ms=3_000)
    assert (reply.status, reply.error.code, reply.error.retriable) == (400, ErrorCode.DEADLINE_UNMET, False)
    assert (reply.error.engine, reply.error.pool_id) == ("mock", POOL)
    assert f"start this task in {start_ms} ms and to end it in {start_ms + 1_000} ms" in reply.error.message
    assert "from 0.5 on" in (reply.error.hint or "")
    assert await cluster.stored() == before
    assert (await submit(door, deadline_ms=60_000)).status == 202


async def test_a_task_for_which_another_would_be_stopped_is_in_time(cluster: Cluster, door: Door) -> None:
    waiting = {"interactive": ClassLoad(queued=10, work_ms=10_000, weight=8, flows_weight=1)}
    for preemptible, priority, deadline_ms, status in (
        (0, Priority.INTERACTIVE, 3_000, 400),
        (1, Priority.INTERACTIVE, 3_000, 202),
        (1, Priority.INTERACTIVE, 300, 400),
        (1, Priority.BATCH, 900, 400),
    ):
        await cluster.report(
            load_report(slots_total=1, slots_free=0, classes=waiting, preemptible=preemptible, **MEASURED)
        )
        assert (await submit(door, priority=priority, deadline_ms=deadline_ms)).status == status


@pytest.mark.parametrize(("least", "status"), [(0.0, 202), (0.999, 400)])
async def test_the_pool_says_which_chance_is_enough(least: float, status: int) -> None:
    async with cluster_of(pool_spec(deadlines=DeadlineSpec(min_on_time_probability=least)), replica()) as cluster:
        door = await cluster.gateway()
        await cluster.report(load_report(**MEASURED))
        assert (await submit(door, deadline_ms=1_200)).status == status


async def test_a_pool_that_was_not_measured_yet_refuses_no_deadline(cluster: Cluster, door: Door) -> None:
    assert (await submit(door, deadline_ms=1)).status == 202
    await cluster.report(load_report(slots_free=0))
    assert (await submit(door, deadline_ms=1)).status == 202


async def test_the_breaker_comes_before_the_deadline_and_both_before_an_appointment(
    cluster: Cluster, door: Door
) -> None:
    asked = await appointing(cluster, LATER)
    line = {"queued": 10, "work_ms": 10_000.0, "weight": 8, "flows_weight": 1, "promised": True}
    for more, code in (({"shed": "late"}, ErrorCode.ADMISSION_REJECT), ({}, ErrorCode.DEADLINE_UNMET)):
        classes = {"interactive": msgspec.convert({**line, **more}, ClassLoad)}
        await cluster.report(load_report(slots_total=1, slots_free=0, classes=classes, **MEASURED))
        assert (await submit(door, deadline_ms=500)).error.code is code
    assert asked == []
    assert (await submit(door)).error.code is ErrorCode.ADMISSION_REJECT
    assert len(asked) == 1


async def test_a_tenant_at_its_bound_is_told_so_and_the_queue_takes_others() -> None:
    spec = pool_spec(queue=QueueSpec(capacity=8, tenant_capacity=2))
    async with cluster_of(spec, replica()) as cluster:
        door, other = await cluster.gateway(), await cluster.gateway(tenant="other")
        for _ in range(2):
            await door.submit()
        flow = FlowLoad(queued=2, work_ms=4_000, pace_ms=12_345)
        await cluster.report(full_load(flows={"default": flow}))
        reply = await submit(door)
        assert (reply.status, reply.error.policy_label) == (429, "tenant-capacity")
        assert reply.error.retry_after_ms == 12_345, "nobody promises anything: it is told its pace"
        assert (await submit(other)).status == 202
        assert await sample(door, "reject") == 1


async def test_a_tenant_at_its_bound_is_given_an_appointment_of_its_own() -> None:
    spec = pool_spec(queue=QueueSpec(capacity=8, tenant_capacity=1))
    async with cluster_of(spec, replica()) as cluster:
        door, other = await cluster.gateway(), await cluster.gateway(tenant="other")
        await door.submit()
        asked = await appointing(cluster, LATER, msgspec.structs.replace(LATER, tenant_bound=True))
        reply = await submit(door)
        assert (reply.error.policy_label, reply.error.retry_after_ms) == ("tenant-capacity", 7_300)
        assert "a place is kept" in reply.error.message
        assert [(each.refused, each.tenant_refused) for each in asked] == [(False, True)]
        await cluster.report(full_load(flows={"default": FlowLoad(queued=1, work_ms=4_000, promised=True)}))
        reply = await submit(door)
        assert (reply.error.policy_label, reply.error.retry_after_ms) == ("tenant-capacity", 7_300)
        assert not asked[-1].tenant_refused, "it is asked before the server is"
        assert (await submit(other)).status == 202
        assert len(asked) == 2, "what is promised to one tenant does not concern another"


@pytest.mark.parametrize("policy", FullPolicy)
async def test_a_full_queue_names_its_policy(policy: FullPolicy) -> None:
    spec = pool_spec(queue=QueueSpec(capacity=1, full_policy=policy))
    async with cluster_of(spec, replica()) as cluster:
        door = await cluster.gateway()
        while (reply := await submit(door, priority=Priority.BATCH)).status == 202:
            pass
        assert (reply.status, reply.error.policy_label) == (429, policy)
        assert await sample(door, policy) == 1


async def sample(door: Door, policy: str) -> float:
    name = f'admission_backpressure_events_total{{engine="mock",policy="{policy}"}} '
    text = (await door.get("/metrics")).body.decode()
    return sum(float(line.removeprefix(name)) for line in text.splitlines() if line.startswith(name))
