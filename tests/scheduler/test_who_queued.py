"""What bus clients put into a queue is held to the catalog; what a gateway let in, or waited before, is kept. A tenant
that queues its task itself is no gateway, whatever it says, and gets no more than by asking one."""

import msgspec
import pytest

from llorch_scheduler.admission_reading import GATEWAY_BEHIND_MS, read_admission
from llorch_scheduler.core.events import TaskArrived
from llorch_shared import streams, subjects
from llorch_shared.bus.port import Message
from llorch_shared.errors import ErrorBody, ErrorCode
from llorch_shared.models import Models
from llorch_shared.wire.audit import AUDIT_DECODER, AuditEvent
from llorch_shared.wire.catalog import CatalogEntry, ModelState, TrustPolicy
from llorch_shared.wire.frames import split_events
from llorch_shared.wire.objects import ObjectRef
from llorch_shared.wire.task import Priority, TaskRequest
from scheduler.world import pool_spec, request, town
from support.bus_worlds import MemoryWorld, eventually

RETIRED_MS = 1_000
POOL = pool_spec()
DIRECT = subjects.admission(POOL.id, "interactive", "default")
OWN = subjects.own_admission(POOL.id, "interactive", "default")
"""As the bus stores what a tenant queued out of its own account."""
REF = ObjectRef(digest=f"sha256:{'b' * 64}", bytes=900)


def catalog(state: ModelState) -> Models:
    models = Models()
    entry = CatalogEntry(
        id="m",
        digest=f"sha256:{'a' * 64}",
        source_url=POOL.model,
        tags=(),
        manifests=(),
        signatures=(),
        sbom=None,
        trust_policy=TrustPolicy(),
        state=state,
        warnings=(),
        created_ms=1,
        changed_ms=RETIRED_MS,
    )
    models.put("m", entry)
    return models


@pytest.mark.parametrize(
    ("headers", "stored_ms", "refused"),
    [
        ({}, RETIRED_MS + 1, True),
        ({}, RETIRED_MS - 1, False),
        ({subjects.LANE_HEADER: "gw-1"}, RETIRED_MS + 1, False),
        ({subjects.LANE_HEADER: "gw-1"}, RETIRED_MS + GATEWAY_BEHIND_MS + 1, True),
    ],
)
def test_a_task_for_a_retired_model(headers: dict[str, str], stored_ms: int, refused: bool) -> None:
    problem = read(headers, stored_ms, catalog(ModelState.RETIRED)).problem
    assert (problem.code if problem is not None else None) == (ErrorCode.MODEL_DEPRECATED if refused else None)


@pytest.mark.parametrize(
    ("claimed", "lane", "channel"),
    [
        ("", "bus-default", "nats"),
        ("gw-1", "gw-1", "http"),
        ("bus-default", "bus-default", "nats"),
        ("bus-other", "bus-default", "nats"),
        ("bus", "bus-default", "nats"),
        ("no.name", "bus-default", "nats"),
    ],
)
def test_nobodys_tokens_go_to_what_another_tenant_hears(claimed: str, lane: str, channel: str) -> None:
    event = read({subjects.LANE_HEADER: claimed} if claimed else {}, RETIRED_MS, Models())
    assert (event.lane, event.channel) == (lane, channel)


@pytest.mark.parametrize(
    ("subject", "lane", "since_ms", "refused"),
    [
        (DIRECT, "", None, True),
        (DIRECT, "", RETIRED_MS, False),
        (DIRECT, "", RETIRED_MS + 1, True),
        (DIRECT, "gw-1", None, False),
        (OWN, "gw-1", None, True),
        (OWN, "", RETIRED_MS, False),
    ],
)
def test_a_deprecated_model_is_for_old_sessions_which_a_gateway_has_looked_at(
    subject: str, lane: str, since_ms: int | None, refused: bool
) -> None:
    headers = {subjects.LANE_HEADER: lane} if lane else {}
    event = read(headers, 60_000, catalog(ModelState.DEPRECATED), subject=subject, since_ms=since_ms)
    assert (event.problem is not None and event.problem.code is ErrorCode.MODEL_DEPRECATED) is refused


@pytest.mark.parametrize("lane", ["", "gw-1", "bus-other", "bus-default"])
def test_a_tenant_that_queues_itself_gets_its_tokens_where_it_may_hear_them(lane: str) -> None:
    event = read({subjects.LANE_HEADER: lane} if lane else {}, RETIRED_MS, Models(), subject=OWN)
    assert (event.tenant, event.lane, event.channel, event.problem) == ("default", "bus-default", "nats", None)


@pytest.mark.parametrize(
    ("task", "says"),
    [(request(override=True), "override:"), (request(prompt=None, payload_ref=REF), "payload_ref:")],
)
def test_a_tenant_that_queues_itself_may_not_ask_for_what_gateways_refuse_it(task: TaskRequest, says: str) -> None:
    for headers in ({}, {subjects.LANE_HEADER: "gw-1"}):
        problem = read(headers, RETIRED_MS, Models(), subject=OWN, task=task).problem
        assert problem is not None
        assert problem.code is ErrorCode.INVALID_PARAMS
        assert problem.message.startswith(says)
        assert read(headers, RETIRED_MS, Models(), task=task).problem is None


def test_an_account_of_no_tenant_ends_its_task() -> None:
    event = read({}, RETIRED_MS, Models(), subject=DIRECT.replace("default", subjects.ACCOUNT_OF_TENANT))
    assert event.problem is not None
    assert event.tenant == "default"


async def test_the_id_of_another_tenants_waiting_task_is_refused_typed_and_audited() -> None:
    async with town(MemoryWorld()) as place:
        await place.scheduler()
        theirs, bus = request(), place.client.bus
        await place.client.admit(theirs)
        frames: list[bytes] = []
        lane = subjects.tokens(subjects.bus_lane("other"), theirs.task_id)
        await bus.subscribe(lane, lambda message: frames.append(message.data))
        own = subjects.own_admission(POOL.id, "interactive", "other")
        await bus.store(own, msgspec.json.encode(request(theirs.task_id, prompt="Mine.")))
        await eventually(lambda: bool(frames))
        (event,) = split_events(frames[0])
        assert event.event == "error"
        assert msgspec.json.decode(event.data, type=ErrorBody).code is ErrorCode.INVALID_PARAMS
        node = await place.node()
        await eventually(lambda: theirs.task_id in node.held)
        run, _ = node.held[theirs.task_id]
        assert (run.tenant, run.lane, run.request) == ("default", "gw-1", theirs)
        await place.processes[0].leave()
        (told,) = await bus.replay(streams.AUD, subjects.audit(AuditEvent.ID_IN_USE, theirs.task_id))
        record = AUDIT_DECODER.decode(told.data)
        assert (record.tenant, record.channel, record.pool_id, record.run_seq) == ("other", "nats", POOL.id, 0)
        assert "admitted" not in await place.client.audited(theirs.task_id)


def read(
    headers: dict[str, str],
    stored_ms: int,
    models: Models,
    *,
    subject: str = DIRECT,
    task: TaskRequest | None = None,
    since_ms: int | None = None,
) -> TaskArrived:
    message = Message(subject, msgspec.json.encode(task or request()), headers, seq=1, stored_ms=stored_ms)
    reading = read_admission(
        message,
        pool_id=POOL.id,
        pool=POOL,
        priority=Priority.INTERACTIVE,
        at_ms=5_000,
        stream="S",
        had_model=lambda *_: False,
        models=models,
        session_since=lambda *_: since_ms,
    )
    assert reading.event is not None
    return reading.event
