"""What bus clients put into a queue is held to the catalog; what a gateway let in, or waited before, is kept."""

import msgspec
import pytest

from llorch_scheduler.admission_reading import read_admission
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
    ],
)
def test_a_task_for_a_retired_model(headers: dict[str, str], stored_ms: int, refused: bool) -> None:
    task, pool, models = request(), pool_spec(), Models()
    entry = CatalogEntry(
        id="m",
        digest=f"sha256:{'a' * 64}",
        source_url=pool.model,
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
    subject = subjects.admission(pool.id, "interactive", "default")
    message = Message(subject, msgspec.json.encode(task), headers, seq=1, stored_ms=stored_ms)
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
    problem = reading.event.problem
    assert (problem.code if problem is not None else None) == (ErrorCode.MODEL_DEPRECATED if refused else None)
