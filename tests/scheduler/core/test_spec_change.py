"""What the audit trail says about a changed pool."""

import msgspec

from llorch_scheduler.core.spec_change import audit, changes
from llorch_shared.wire.audit import AuditEvent
from llorch_shared.wire.policy import (
    AdmissionSpec,
    CanarySpec,
    FairnessSpec,
    PreemptionSpec,
    PrioritySpec,
    QueueSpec,
    TenantSpec,
)
from llorch_shared.wire.provisioning_spec import ProvisioningSpec
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Engine, Priority

POOL = PoolSpec(id="p1", engine=Engine.MOCK, model="m")


def changed(**fields: object) -> dict[str, str]:
    return changes(POOL, msgspec.structs.replace(POOL, **fields))


def test_only_what_differs_is_told_by_its_path() -> None:
    assert changed(queue=QueueSpec(capacity=64), preemption=PreemptionSpec(mode="hard")) == {
        "preemption.mode": '"soft"→"hard"',
        "queue.capacity": "256→64",
    }
    assert changed() == {}


def test_members_of_a_list_are_told_by_their_name() -> None:
    after = AdmissionSpec(
        priorities=(PrioritySpec(name=Priority.BATCH, weight=3),),
        fairness=FairnessSpec(tenants=(TenantSpec(id="acme", weight=5),)),
    )
    told = changed(admission=after)
    assert told["admission.priorities.batch.weight"] == "unset→3"
    assert told["admission.fairness.tenants.acme.weight"] == "unset→5"


def test_a_part_that_appears_or_goes_is_told() -> None:
    told = changed(canary=CanarySpec(engine_version="2", percent=5))
    assert told == {
        "canary.engine_version": 'unset→"2"',
        "canary.percent": "unset→5",
    }


def test_values_of_the_engines_environment_are_never_told() -> None:
    provisioning = ProvisioningSpec(env={"HF_TOKEN": "secret"})
    assert changed(provisioning=provisioning) == {"provisioning.env.HF_TOKEN": "changed, hidden"}


def test_the_record_names_the_pool_and_says_when_it_is_new_or_gone() -> None:
    record = audit(None, POOL, "p1", 7, "scheduler/x")
    assert (record.event, record.task_id, record.detail) == (AuditEvent.POOL_CHANGED, "p1", {"pool": "created"})
    assert audit(POOL, None, "p1", 7, "scheduler/x").detail == {"pool": "removed"}
