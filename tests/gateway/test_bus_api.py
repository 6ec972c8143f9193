"""Bus clients are equals: the same operations by request and reply."""

from typing import Any

import jsonschema
import msgspec
import pytest

from llorch_shared import streams, subjects
from llorch_shared.errors import ErrorBody, ErrorCode
from llorch_shared.http_api import OPERATIONS
from llorch_shared.wire.registry import Capabilities, PoolHealth
from llorch_shared.wire.run import TaskView
from llorch_shared.wire.task import TaskAccepted, TaskState
from support.client import task_request
from support.gateways import STARTED, Cluster, Door, cluster_of, end, pool_spec, replica, run_record, tokens


async def ask(
    cluster: Cluster, subject: str, body: Any = None, *, correlation: str = ""
) -> tuple[bytes, dict[str, str]]:
    headers = {subjects.CORRELATION_HEADER: correlation} if correlation else None
    data = body if isinstance(body, bytes) else b"" if body is None else msgspec.json.encode(body)
    answer = await cluster.bus.request(subject, data, headers=headers, timeout_s=20)
    return answer.data, dict(answer.headers)


async def refused(cluster: Cluster, subject: str, body: Any) -> tuple[str, ErrorBody]:
    data, headers = await ask(cluster, subject, body)
    told = msgspec.json.decode(data, type=ErrorBody)
    assert headers["Nats-Service-Error"] == told.code
    return headers["Nats-Service-Error-Code"], told


async def test_a_task_submitted_on_the_bus_is_read_over_http(cluster: Cluster, door: Door) -> None:
    request = task_request()
    data, headers = await ask(cluster, subjects.api("tasks.submit"), request, correlation="from-the-bus")
    accepted = msgspec.json.decode(data, type=TaskAccepted)
    assert (accepted.task_id, accepted.correlation_id) == (request.task_id, "from-the-bus")
    assert headers["X-Correlation-Id"] == "from-the-bus"
    assert "Nats-Service-Error" not in headers
    reader = door.stream(request.task_id)
    await cluster.publish(door.lane, request.task_id, STARTED, tokens(0, 0), end(1))
    assert (await reader.end()).names == ["started", "token 1-0", "end 1-1"]


async def test_a_task_is_looked_up_and_cancelled_on_the_bus(cluster: Cluster, door: Door) -> None:
    task = task_request().task_id
    await cluster.record(run_record(task, TaskState.CANCELLED, tokens_out=2))
    for subject in (subjects.api("tasks.get"), subjects.api("tasks.cancel")):
        data, _ = await ask(cluster, subject, {"task_id": task.upper()})
        assert msgspec.json.decode(data, type=TaskView).state is TaskState.CANCELLED


async def test_capabilities_and_health_are_told_on_the_bus(cluster: Cluster, door: Door) -> None:
    data, _ = await ask(cluster, subjects.api("capabilities"))
    assert msgspec.json.decode(data, type=Capabilities).engines[0].engine == "mock"
    data, _ = await ask(cluster, subjects.api("pools.health"), {"pool_id": "p1"})
    assert msgspec.json.decode(data, type=PoolHealth).ready


@pytest.mark.parametrize(
    ("subject", "body", "status", "code"),
    [
        (subjects.api("tasks.submit"), b"{", "400", ErrorCode.INVALID_PARAMS),
        (subjects.api("tasks.submit"), b"\xff\xff", "400", ErrorCode.INVALID_PARAMS),
        (subjects.api("tasks.submit"), {"task_id": "1"}, "400", ErrorCode.INVALID_PARAMS),
        (subjects.api("tasks.get"), {"task_id": "1"}, "400", ErrorCode.INVALID_PARAMS),
        (subjects.api("tasks.get"), {"task_id": task_request().task_id, "x": 1}, "400", ErrorCode.INVALID_PARAMS),
        (subjects.api("tasks.get"), {"task_id": task_request().task_id}, "404", ErrorCode.INVALID_PARAMS),
        (subjects.api("tasks.cancel"), {"task_id": task_request().task_id}, "404", ErrorCode.INVALID_PARAMS),
        (subjects.api("pools.health"), {"pool_id": "nope"}, "404", ErrorCode.INVALID_PARAMS),
        (subjects.api("pools.health"), b"", "400", ErrorCode.INVALID_PARAMS),
    ],
)
async def test_a_bad_request_gets_the_envelope_of_its_twin(
    cluster: Cluster, door: Door, subject: str, body: Any, status: str, code: ErrorCode
) -> None:
    before = await cluster.stored()
    told_status, told = await refused(cluster, subject, body)
    assert (told_status, told.code) == (status, code)
    assert await cluster.stored() == before


async def test_a_full_queue_refuses_on_the_bus_as_over_http() -> None:
    async with cluster_of(pool_spec(capacity=1), replica()) as cluster:
        door = await cluster.gateway()
        await door.submit()
        status, told = await refused(cluster, subjects.api("tasks.submit"), task_request())
        assert (status, told.code, told.policy_label) == ("429", ErrorCode.ADMISSION_REJECT, "reject")


async def test_gateways_share_the_requests(cluster: Cluster, door: Door) -> None:
    await cluster.gateway()
    await ask(cluster, subjects.api("tasks.submit"), task_request())
    assert (await cluster.bus.stream_state(streams.admission_stream("p1", task_request().priority))).messages == 1


async def test_the_tools_of_nats_find_the_operations_with_their_schemas(cluster: Cluster, door: Door) -> None:
    ping = msgspec.json.decode((await ask(cluster, "$SRV.PING.llama-orch"))[0])
    assert (ping["type"], ping["id"]) == ("io.nats.micro.v1.ping_response", door.lane)
    info = msgspec.json.decode((await ask(cluster, f"$SRV.INFO.llama-orch.{door.lane}"))[0])
    told = {endpoint["name"]: endpoint for endpoint in info["endpoints"]}
    assert told.keys() == {operation.operation_id for operation in OPERATIONS if operation.twin}
    submit = told["submitTask"]
    assert submit["subject"] == "llorch.api.tasks.submit"
    jsonschema.validate(msgspec.to_builtins(task_request()), msgspec.json.decode(submit["metadata"]["request_schema"]))


async def test_a_request_and_a_refusal_are_counted(cluster: Cluster, door: Door) -> None:
    await ask(cluster, subjects.api("capabilities"))
    await ask(cluster, subjects.api("pools.health"), {"pool_id": "nope"})
    stats = msgspec.json.decode((await ask(cluster, "$SRV.STATS"))[0])
    told = {endpoint["name"]: endpoint for endpoint in stats["endpoints"]}
    assert (told["getCapabilities"]["num_requests"], told["getCapabilities"]["num_errors"]) == (1, 0)
    assert (told["getPoolHealth"]["num_errors"], told["getPoolHealth"]["last_error"]) == (
        1,
        "404:INVALID_PARAMS",
    )
