"""What bus clients put into a queue is held to the catalog; what a gateway let in, or waited before, is kept. Whoever
says that it is a gateway gains little by it."""

import msgspec
import pytest

from llorch_scheduler.admission_reading import GATEWAY_BEHIND_MS, read_admission
from llorch_scheduler.core.events import TaskArrived
from llorch_shared import subjects
from llorch_shared.bus.port import Message
from llorch_shared.errors import ErrorCode
from llorch_shared.models import Models
from llorch_shared.wire.catalog import CatalogEntry, ModelState, TrustPolicy
from llorch_shared.wire.task import Priority
from scheduler.world import pool_spec, request

RETIRED_MS = 1_000


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
    models = Models()
    entry = CatalogEntry(
        id="m",
        digest=f"sha256:{'a' * 64}",
        source_url=pool_spec().model,
        tags=(),
        manifests=(),
        signatures=(),
        sbom=None,
        trust_policy=TrustPolicy(),
        state=ModelState.RETIRED,
        warnings=(),
        created_ms=1,
        changed_ms=RETIRED_MS,
    )
    models.put("m", entry)
    problem = read(headers, stored_ms, models).problem
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


def read(headers: dict[str, str], stored_ms: int, models: Models) -> TaskArrived:
    pool = pool_spec()
    subject = subjects.admission(pool.id, "interactive", "default")
    message = Message(subject, msgspec.json.encode(request()), headers, seq=1, stored_ms=stored_ms)
    reading = read_admission(
        message,
        pool_id=pool.id,
        pool=pool,
        priority=Priority.INTERACTIVE,
        at_ms=5_000,
        stream="S",
        had_model=lambda *_: False,
        models=models,
    )
    assert reading.event is not None
    return reading.event
