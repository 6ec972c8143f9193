"""POST /v1/tasks: accepted means stored, once; refused means no trace anywhere."""

import asyncio
import itertools
import logging
from typing import Any

import msgspec
import pytest

from llorch_gateway.enqueue import message_ids
from llorch_shared import streams, subjects
from llorch_shared.bus.memory import MemoryBus
from llorch_shared.bus.port import Unanswered
from llorch_shared.errors import ErrorCode
from llorch_shared.waiting import expect
from llorch_shared.wire.audit import AUDIT_DECODER, AuditEvent, AuditRecord
from llorch_shared.wire.policy import AdmissionSpec, FairnessSpec, TenantSpec
from llorch_shared.wire.registry import ClassLoad, FlowLoad, ReplicaState
from llorch_shared.wire.run import TaskView, WaitsFor
from llorch_shared.wire.task import REQUEST_DECODER, Priority, TaskAccepted, TaskState
from support.asgi import Reply
from support.client import task_request
from support.gateways import Cluster, Door, cluster_of, load_report, pool_spec, replica, run_record


def body(**changes: Any) -> bytes:
    """A valid task as JSON, with fields replaced or (None) taken out."""
    plain = {**msgspec.to_builtins(task_request()), **changes}
    return msgspec.json.encode({name: value for name, value in plain.items() if value is not None})


async def test_an_accepted_task_is_stored_with_its_lane_correlation_id_and_audit(cluster: Cluster, door: Door) -> None:
    request = task_request(priority=Priority.BATCH)
    reply = await door.post("/v1/tasks", msgspec.json.encode(request), x_correlation_id="from-the-client")
    accepted = reply.json(TaskAccepted)
    assert reply.status == 202
    assert accepted.task_id == request.task_id
    assert (accepted.correlation_id, reply.headers["x-correlation-id"]) == ("from-the-client", "from-the-client")
    [message] = await cluster.admissions(priority=Priority.BATCH)
    assert message.subject == subjects.admission("p1", "batch", "default")
    assert REQUEST_DECODER.decode(message.data) == request
    assert message.headers["X-Correlation-Id"] == "from-the-client"
    assert message.headers["Llorch-Lane"] == door.lane
    async with asyncio.timeout(15):
        while not (kept := await cluster.bus.replay(streams.AUD, "llorch.aud.>")):
            await asyncio.sleep(0.01)
    audited = AUDIT_DECODER.decode(kept[0].data)
    assert (audited.event, audited.identity, audited.pool_id) == (AuditEvent.ADMITTED, "localhost", "p1")


async def test_the_answer_tells_position_and_start_from_the_schedulers_load(cluster: Cluster, door: Door) -> None:
    waiting = ClassLoad(queued=3, work_ms=2_400, weight=8, flows_weight=1)
    load = load_report(
        queued={"interactive": 3}, slots_total=2, slots_free=0, service_ms=800, classes={"interactive": waiting}
    )
    await cluster.report(load)
    answers = [(await door.post("/v1/tasks", body())).json(TaskAccepted) for _ in range(2)]
    assert [answer.queue_position for answer in answers] == [3, 4]
    foreseen = [round(expect(load, Priority.INTERACTIVE, "default", seq).start_ms) for seq in (1, 2)]
    assert [answer.predicted_start_ms for answer in answers] == foreseen
    assert 1_000 < foreseen[0] < foreseen[1] < 3_000
    looked_up = (await door.get(f"/v1/tasks/{answers[0].task_id}")).json(TaskView)
    assert (looked_up.queue_position, looked_up.predicted_start_ms) == (3, foreseen[0])


async def test_a_tenant_does_not_wait_behind_all_that_another_has_piled_up(cluster: Cluster, door: Door) -> None:
    noisy = FlowLoad(queued=100, work_ms=100_000)
    waiting = ClassLoad(queued=100, work_ms=100_000, weight=8, flows_weight=1, flows={"noisy": noisy})
    await cluster.report(
        load_report(queued={"interactive": 100}, slots_free=0, service_ms=1_000, classes={"interactive": waiting})
    )
    noisy_door = await cluster.gateway(tenant="noisy")
    await cluster.report(
        load_report(queued={"interactive": 100}, slots_free=0, service_ms=1_000, classes={"interactive": waiting})
    )
    quiet = (await door.post("/v1/tasks", body())).json(TaskAccepted)
    loud = (await noisy_door.post("/v1/tasks", body())).json(TaskAccepted)
    assert quiet.queue_position <= 1
    assert loud.queue_position >= 100
    assert loud.predicted_start_ms > 10 * quiet.predicted_start_ms


async def test_a_task_for_a_model_that_is_loading_is_told_so(cluster: Cluster, door: Door) -> None:
    loading = load_report(slots_total=0, slots_free=0, replicas_ready=0, loading_ms=42_000, loading_slots=4)
    await cluster.report(loading)
    accepted = (await door.post("/v1/tasks", body())).json(TaskAccepted)
    assert (accepted.queue_position, accepted.predicted_start_ms) == (0, 42_000)
    view = (await door.get(f"/v1/tasks/{accepted.task_id}")).json(TaskView)
    assert (view.waits_for, view.predicted_start_ms) == (WaitsFor.MODEL, 42_000)
    await cluster.report(load_report(slots_free=0))
    view = (await door.get(f"/v1/tasks/{accepted.task_id}")).json(TaskView)
    assert view.waits_for is WaitsFor.SLOT


async def test_an_admission_is_told_with_tenant_class_weight_deadline_and_chance(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    tenants = (TenantSpec(id="acme", weight=5),)
    spec = pool_spec("p2", model="mock:other", admission=AdmissionSpec(fairness=FairnessSpec(tenants=tenants)))
    await cluster.add_pool(spec, replica("p2"))
    door = await cluster.gateway(tenant="acme")
    await cluster.report(load_report("p2", service_ms=500, token_ms=20, overhead_ms=100))
    with caplog.at_level(logging.INFO, "llorch_gateway.admission_report"):
        task = await door.submit(model_ref="mock:other", priority=Priority.BATCH, deadline_ms=60_000)
    [told] = [record for record in caplog.records if getattr(record, "action", "") == "admit"]
    fields = ("task_id", "tenant_id", "priority", "weight", "deadline_ms", "on_time_probability")
    assert [getattr(told, name) for name in fields] == [task, "acme", "batch", 5, 60_000, 1.0]
    async with asyncio.timeout(15):
        while not (kept := await cluster.bus.replay(streams.AUD, subjects.audits_of_task(task))):
            await asyncio.sleep(0.01)
    detail = AUDIT_DECODER.decode(kept[0].data).detail
    assert (detail["weight"], detail["on_time_probability"], detail["deadline_ms"]) == (5, 1.0, 60_000)


async def test_the_same_task_again_is_the_same_task(cluster: Cluster, door: Door) -> None:
    request = msgspec.json.encode(task_request())
    other = await cluster.gateway()
    answers = [await one.post("/v1/tasks", request) for one in (door, door, other)]
    assert [answer.status for answer in answers] == [202, 202, 202]
    assert len({answer.json(TaskAccepted).task_id for answer in answers}) == 1
    assert len(await cluster.admissions()) == 1


async def test_an_admission_whose_gateway_died_before_its_record_is_recorded_when_the_task_is_sent_again(
    cluster: Cluster, door: Door
) -> None:
    lost, told = task_request(), task_request()
    for request in (lost, told):
        subject = subjects.admission("p1", request.priority, "default")
        await cluster.bus.store(subject, msgspec.json.encode(request), msg_id=request.task_id)
    stands = AuditRecord(event=AuditEvent.ADMITTED, task_id=told.task_id, at_ms=0, actor="gateway/other")
    await cluster.bus.store(subjects.audit("admitted", told.task_id), msgspec.json.encode(stands))
    for request in (lost, told, lost):
        assert (await door.post("/v1/tasks", msgspec.json.encode(request))).status == 202
    async with asyncio.timeout(15):
        while await cluster.bus.last(streams.AUD, subjects.audit("admitted", lost.task_id)) is None:
            await asyncio.sleep(0.01)
    later = task_request()
    await door.post("/v1/tasks", msgspec.json.encode(later))
    async with asyncio.timeout(15):
        while await cluster.bus.last(streams.AUD, subjects.audit("admitted", later.task_id)) is None:
            await asyncio.sleep(0.01)
    found = [AUDIT_DECODER.decode(each.data) for each in await cluster.bus.replay(streams.AUD, "llorch.aud.admitted.*")]
    actors = [(each.task_id, each.actor) for each in found]
    assert actors == [
        (told.task_id, "gateway/other"),
        (lost.task_id, f"gateway/{door.lane}"),
        (later.task_id, f"gateway/{door.lane}"),
    ]


@pytest.mark.parametrize("waits", [True, False])
async def test_whose_message_id_a_tenant_has_given_to_its_own_task_is_queued_all_the_same(
    cluster: Cluster, door: Door, waits: bool
) -> None:
    theirs, request = task_request(), task_request()
    own = subjects.own_admission("p1", request.priority, "acme")
    stored = await cluster.bus.store(own, msgspec.json.encode(theirs), msg_id=request.task_id)
    if not waits:
        await cluster.bus.remove(stored.stream, stored.seq)
    for one in (door, door, await cluster.gateway()):
        assert (await one.post("/v1/tasks", msgspec.json.encode(request))).status == 202
    queued = [msgspec.json.decode(each.data)["task_id"] for each in await cluster.admissions()]
    assert queued.count(request.task_id) == 1
    assert queued.count(theirs.task_id) == waits


async def test_who_knows_all_of_a_task_keeps_it_out_of_no_queue(cluster: Cluster, door: Door) -> None:
    request = task_request()
    own, payload = subjects.own_admission("p1", request.priority, "acme"), msgspec.json.encode(request)
    for msg_id in itertools.islice(message_ids(request.task_id, payload), 2):
        await cluster.bus.store(own, msgspec.json.encode(task_request()), msg_id=msg_id)
    assert (await door.post("/v1/tasks", payload)).status == 202
    queued = [msgspec.json.decode(each.data)["task_id"] for each in await cluster.admissions()]
    assert queued.count(request.task_id) == 1


async def test_a_task_that_has_left_its_queue_is_not_queued_again(cluster: Cluster, door: Door) -> None:
    request = task_request()
    await door.post("/v1/tasks", msgspec.json.encode(request))
    await cluster.record(run_record(request.task_id, TaskState.RUNNING))
    [message] = await cluster.admissions()
    await cluster.bus.remove(streams.admission_stream("p1", request.priority), message.seq)
    assert (await door.post("/v1/tasks", msgspec.json.encode(request))).status == 202
    assert await cluster.admissions() == []


async def test_an_upper_case_task_id_is_the_same_task(cluster: Cluster, door: Door) -> None:
    request = task_request()
    await door.post("/v1/tasks", msgspec.json.encode(request))
    shouted = msgspec.structs.replace(request, task_id=request.task_id.upper())
    assert (await door.post("/v1/tasks", msgspec.json.encode(shouted))).json(TaskAccepted).task_id == request.task_id
    assert len(await cluster.admissions()) == 1


async def test_a_lost_ack_is_repeated_and_admits_once(cluster: Cluster, door: Door) -> None:
    cluster.server.answers_lost = 1
    task = await door.submit()
    [message] = await cluster.admissions()
    assert message.headers["Nats-Msg-Id"] == task
    assert await _sample(door, "admission_latency_ms_count") == 1


async def test_a_full_queue_refuses_with_when_to_come_back_and_a_known_task_stays_accepted() -> None:
    async with cluster_of(pool_spec(capacity=2), replica()) as cluster:
        door = await cluster.gateway()
        first = task_request()
        await door.post("/v1/tasks", msgspec.json.encode(first))
        await door.submit()
        await cluster.report(load_report(slots_total=2, slots_free=0, service_ms=5000))
        reply = await door.post("/v1/tasks", body())
        assert reply.status == 429
        assert reply.error.code is ErrorCode.ADMISSION_REJECT
        assert (reply.error.policy_label, reply.error.retriable, reply.error.engine) == ("reject", True, "mock")
        assert reply.error.retry_after_ms == 2500
        assert (reply.headers["retry-after"], reply.headers["x-backoff-ms"]) == ("3", "2500")
        assert reply.headers["x-correlation-id"]
        assert len(await cluster.admissions()) == 2
        assert (await door.post("/v1/tasks", msgspec.json.encode(first))).status == 202
        assert await _sample(door, 'tasks_rejected_total{engine="mock",reason="ADMISSION_REJECT"}') == 1
        assert await _sample(door, 'admission_backpressure_events_total{engine="mock",policy="reject"}') == 1


async def test_a_task_that_ran_long_ago_stays_accepted_when_the_queue_is_full() -> None:
    async with cluster_of(pool_spec(capacity=1), replica()) as cluster:
        door = await cluster.gateway()
        await door.submit()
        old = task_request()
        await cluster.record(run_record(old.task_id, TaskState.DONE, tokens_out=3))
        assert (await door.post("/v1/tasks", msgspec.json.encode(old))).status == 202
        assert len(await cluster.admissions()) == 1


BAD: dict[str, tuple[bytes, int, ErrorCode]] = {
    "not json": (b"{", 400, ErrorCode.INVALID_PARAMS),
    "empty": (b"", 400, ErrorCode.INVALID_PARAMS),
    "invalid utf-8": (body().replace(b"Say", b"\xff\xfe"), 400, ErrorCode.INVALID_PARAMS),
    "an array": (b"[]", 400, ErrorCode.INVALID_PARAMS),
    "wrong type": (body(max_tokens="many"), 400, ErrorCode.INVALID_PARAMS),
    "unknown field": (body(temperature=1), 400, ErrorCode.INVALID_PARAMS),
    "missing field": (body(model_ref=None), 400, ErrorCode.INVALID_PARAMS),
    "bad uuid": (body(task_id="17"), 400, ErrorCode.INVALID_PARAMS),
    "negative ctx": (body(ctx=-1), 400, ErrorCode.INVALID_PARAMS),
    "huge ctx": (body(ctx=1_000_000), 400, ErrorCode.INVALID_PARAMS),
    "ctx over the pool": (body(ctx=8192), 400, ErrorCode.INVALID_PARAMS),
    "no max_tokens": (body(max_tokens=0), 400, ErrorCode.INVALID_PARAMS),
    "max_tokens over ctx": (body(ctx=64, max_tokens=64), 400, ErrorCode.INVALID_PARAMS),
    "prompt over ctx": (body(ctx=64, prompt="x" * 20_000), 400, ErrorCode.INVALID_PARAMS),
    "no prompt": (body(prompt=None), 400, ErrorCode.INVALID_PARAMS),
    "prompt and inputs": (body(inputs=["a"]), 400, ErrorCode.INVALID_PARAMS),
    "inputs for a completion": (body(prompt=None, inputs=["a"]), 400, ErrorCode.INVALID_PARAMS),
    "workload nobody serves": (body(prompt=None, inputs=["a"], workload="embedding"), 400, ErrorCode.INVALID_PARAMS),
    "unknown engine": (body(engine="abacus"), 400, ErrorCode.INVALID_PARAMS),
    "unknown model": (body(model_ref="mock:nothing"), 400, ErrorCode.INVALID_PARAMS),
    "another engine's model": (body(engine="llamacpp"), 400, ErrorCode.INVALID_PARAMS),
    "deadline zero": (body(deadline_ms=0), 400, ErrorCode.DEADLINE_UNMET),
    "deadline past": (body(deadline_ms=-5), 400, ErrorCode.DEADLINE_UNMET),
    "lone surrogate": (body(prompt="@").replace(b'"@"', b'"\\ud800"'), 400, ErrorCode.INVALID_PARAMS),
    "too long": (body(prompt="x" * 1_000_000), 400, ErrorCode.INVALID_PARAMS),
    "twenty megabytes": (b"x" * 20_000_000, 413, ErrorCode.INVALID_PARAMS),
}


@pytest.mark.parametrize("name", BAD)
async def test_bad_input_gets_the_envelope_and_leaves_no_trace(cluster: Cluster, door: Door, name: str) -> None:
    sent, status, code = BAD[name]
    before = await cluster.stored()
    reply = await door.post("/v1/tasks", sent)
    assert (reply.status, reply.error.code, reply.error.retriable) == (status, code, False)
    assert reply.error.message
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-correlation-id"]
    assert await cluster.stored() == before


async def test_the_envelope_names_the_engine_of_a_refused_task(door: Door) -> None:
    assert (await door.post("/v1/tasks", body(max_tokens=0))).error.engine == "mock"
    assert (await door.post("/v1/tasks", body(engine="abacus"))).error.engine == "abacus"


@pytest.mark.parametrize("kind", ["text/plain", "", "application/x-www-form-urlencoded"])
async def test_another_content_type_is_refused(cluster: Cluster, door: Door, kind: str) -> None:
    reply = await door.post("/v1/tasks", body(), content_type=kind)
    assert (reply.status, reply.error.code) == (415, ErrorCode.INVALID_PARAMS)
    assert not await cluster.admissions()


async def test_a_content_type_with_a_charset_is_json(door: Door) -> None:
    assert (await door.post("/v1/tasks", body(), content_type="application/json; charset=utf-8")).status == 202


async def test_a_pool_whose_replicas_are_gone_is_not_ready(cluster: Cluster, door: Door) -> None:
    await cluster.add_pool(pool_spec("p2", model="mock:other"))
    reply = await _until_routed(door, body(model_ref="mock:other"))
    assert (reply.status, reply.error.code, reply.error.pool_id) == (503, ErrorCode.POOL_UNREADY, "p2")
    assert reply.headers["retry-after"] == "1"


async def test_a_pool_whose_replicas_have_failed_is_exhausted_and_says_why(cluster: Cluster, door: Door) -> None:
    broken = replica("p2", state=ReplicaState.FAILED, last_error="no CUDA device")
    await cluster.add_pool(pool_spec("p2", model="mock:other"), broken)
    reply = await _until_routed(door, body(model_ref="mock:other"))
    assert (reply.status, reply.error.code) == (503, ErrorCode.REPLICA_EXHAUSTED)
    assert "no CUDA device" in reply.error.message


async def test_a_task_for_a_pool_that_is_still_starting_waits_in_its_queue(cluster: Cluster, door: Door) -> None:
    starting = replica("p2", state=ReplicaState.STARTING)
    await cluster.add_pool(pool_spec("p2", model="mock:other"), starting)
    assert (await _until_routed(door, body(model_ref="mock:other"))).status == 202
    assert len(await cluster.admissions("p2")) == 1


async def test_a_bus_that_does_not_answer_is_unavailable_and_retriable(
    cluster: Cluster, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unanswered(*_args: object, **_more: object) -> None:
        raise Unanswered("no answer")

    monkeypatch.setattr(MemoryBus, "store", unanswered)
    monkeypatch.setattr("llorch_gateway.enqueue.PUBLISH_WITHIN_S", 0.2)
    reply = await door.post("/v1/tasks", body())
    assert (reply.status, reply.error.code, reply.error.retriable) == (503, ErrorCode.POOL_UNAVAILABLE, True)


async def test_a_queue_that_answers_nobody_is_asked_once_until_it_answers_again(
    cluster: Cluster, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0

    async def unanswered(*_args: object, **_more: object) -> None:
        nonlocal tries
        tries += 1
        raise Unanswered("no answer")

    monkeypatch.setattr("llorch_gateway.enqueue.PUBLISH_WITHIN_S", 1.0)
    with monkeypatch.context() as broken:
        broken.setattr(MemoryBus, "store", unanswered)
        assert (await door.post("/v1/tasks", body())).status == 503
        assert tries > 1
        tries = 0
        assert (await door.post("/v1/tasks", body())).status == 503
        assert tries == 1
    assert (await door.post("/v1/tasks", body())).status == 202
    monkeypatch.setattr(MemoryBus, "store", unanswered)
    tries = 0
    assert (await door.post("/v1/tasks", body())).status == 503
    assert tries > 1


async def test_a_refused_task_keeps_no_channel(cluster: Cluster) -> None:
    async with cluster_of(pool_spec(capacity=1), replica()) as small:
        door = await small.gateway()
        await door.submit()
        request = task_request()
        assert (await door.post("/v1/tasks", msgspec.json.encode(request))).status == 429
        assert not list(door.gateway.backend.router.channels_of(request.task_id))


async def test_admissions_are_counted(door: Door) -> None:
    await door.submit()
    await door.post("/v1/tasks", b"{}")
    labels = 'engine="mock",engine_version="",pool_id="p1",priority="interactive",replica_id=""'
    assert await _sample(door, f"tasks_enqueued_total{{{labels}}}") == 1
    assert await _sample(door, 'tasks_rejected_total{engine="",reason="INVALID_PARAMS"}') == 1
    assert await _sample(door, "admission_latency_ms_count") == 1


async def _sample(door: Door, name: str) -> float:
    text = (await door.get("/metrics")).body.decode()
    [line] = [line for line in text.splitlines() if line.startswith(name + " ")]
    return float(line.rpartition(" ")[2])


async def _until_routed(door: Door, sent: bytes) -> Reply:
    """Submit until the gateway has seen the pool that was just added."""
    async with asyncio.timeout(15):
        while (reply := await door.post("/v1/tasks", sent)).status == 400:
            await asyncio.sleep(0.005)
    return reply
