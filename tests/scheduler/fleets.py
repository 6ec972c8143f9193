"""Fleets for placement's tests, and the same decision made by looking at every replica."""

from collections.abc import Iterable
from typing import Any

from llorch_scheduler.core.affinity import Last
from llorch_scheduler.core.decision import Decision
from llorch_scheduler.core.fleet import Fleet
from llorch_scheduler.core.job import Job, Phase
from llorch_scheduler.core.peers import speed_of
from llorch_scheduler.core.placement import ABOUT
from llorch_scheduler.core.pool_fleet import PoolFleet
from llorch_scheduler.core.replica import Replica
from llorch_scheduler.core.replica_sets import ReplicaSets, SetKey, set_key, side_of
from llorch_shared.wire.registry import ReplicaRecord
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import TaskRequest, TaskState
from scheduler.samples import replica_record, request, spec

POOL = "p1"


def job(number: int, *, at_ms: int = 0, tenant: str = "default", **fields: Any) -> Job:
    """One that is about to be placed."""
    wish = request(number, **fields)
    record = RunRecord(
        task_id=wish.task_id,
        state=TaskState.QUEUED,
        pool_id=POOL,
        lane="gw-1",
        correlation_id="c",
        tenant=tenant,
        priority=wish.priority,
        admitted_ms=at_ms,
        request=wish,
    )
    made = Job(record=record, state=TaskState.QUEUED, phase=Phase.PLACING, order=(1, number), due_ms=2**53)
    made.held_ms = at_ms
    return made


def fleet_of(*records: ReplicaRecord, pool: PoolSpec | None = None) -> tuple[Fleet, PoolFleet]:
    fleet = Fleet()
    replicas = fleet.pool(POOL)
    replicas.configure(pool or spec())
    for record in records:
        fleet.named(POOL, record.replica_id, 0).report(record)
    return fleet, replicas


def ready(replica_id: str, **fields: Any) -> ReplicaRecord:
    return replica_record(replica_id, **{"free_vram_mb": 1_000, **fields})


def place(replicas: PoolFleet, task: Job, *, at_ms: int = 0) -> Decision:
    """Decide, and hold the slot."""
    wish = task.record.request
    assert wish is not None
    decision = replicas.decide(wish, tenant=task.record.tenant, at_ms=at_ms)
    if decision.replica is not None:
        task.held_ms = at_ms
        decision.replica.hold(task)
    return decision


def picked(decision: Decision) -> str:
    return decision.replica.replica_id if decision.replica is not None else ""


def scan(
    all_replicas: Iterable[Replica],
    wish: TaskRequest,
    pool: PoolSpec,
    *,
    sets: ReplicaSets,
    last: Last | None,
) -> tuple[str, bool]:
    """Which replica takes the task, and whether one could: by the words of the requirement, one replica at a time."""
    wanted = sets.serving(side_of(wish, pool))
    able: list[Replica] = []
    for replica in all_replicas:
        record = replica.record
        if record is None or not replica.ready:
            continue
        mask = wish.placement.require_device_mask if wish.placement is not None else None
        if (
            record.engine is pool.engine
            and record.model_ref in ("", pool.model)
            and (mask is None or record.device == mask)
            and (record.ctx_max == 0 or record.ctx_max >= wish.ctx)
            and (pool.quant is None or record.quant in ("", pool.quant))
            and wish.workload in record.workloads
            and _in_set(record, pool, wanted, sets.canary)
        ):
            able.append(replica)
    free = [replica for replica in able if replica.slots_free > 0 and _has_room(replica, wish)]
    if not free:
        return "", bool(able)
    ends = {replica.replica_id: _end_ms(replica, wish) for replica in free}
    least = min((end for end in ends.values() if end), default=0.0)
    tied = [replica for replica in free if ends[replica.replica_id] <= least * ABOUT]
    for replica in tied:
        assert replica.record is not None
        if last is not None and (replica.replica_id, replica.record.incarnation) == (last.replica_id, last.incarnation):
            return replica.replica_id, True
    best = min(tied, key=lambda each: (-each.free_vram_mb, each.slots_taken, each.replica_id))
    return best.replica_id, True


def _in_set(record: ReplicaRecord, pool: PoolSpec, wanted: SetKey | None, canary: SetKey | None) -> bool:
    if pool.require_same_engine_version:
        return set_key(record) == wanted
    if pool.canary is None:
        return True
    is_canary = record.engine_version == pool.canary.engine_version
    return is_canary if canary is not None and wanted == canary else not is_canary


def _has_room(replica: Replica, wish: TaskRequest) -> bool:
    assert replica.record is not None
    need_bytes = replica.record.kv_bytes_per_token * wish.ctx
    return need_bytes == 0 or replica.free_vram_mb * 2**20 >= need_bytes


def _end_ms(replica: Replica, wish: TaskRequest) -> float:
    assert replica.record is not None
    rate, first = speed_of(replica.record)
    return first + (wish.expected_tokens or wish.max_tokens) * (1_000 / rate) if rate and first else 0.0
