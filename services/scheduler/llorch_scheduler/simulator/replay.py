"""A recorded hour as a scenario: the same arrivals, the same slot times, as many slots; the policy is whose one likes.

What a live system added between two tasks on a slot (placement, claim) is in the recording's median claim. Replicas are
taken to have lived through the whole recording; a task whose client cancelled is cancelled after the same time.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from llorch_scheduler.simulator.arrivals import Recorded, Trace, TraceRow
from llorch_scheduler.simulator.recording import RecordedTask, Recording, slot_times
from llorch_scheduler.simulator.scenario import (
    Flow,
    Hardware,
    PoolPlan,
    ReplicaPlan,
    Scenario,
    ScenarioError,
)
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import CTX_MAX, Engine, Priority

RECORDED: Final = Hardware(name="recorded", vram_mb=0, prefill_per_s=1_000, step_ms=1.0)
"""Never asked: recorded tasks bring their times."""


def recorded_scenario(recording: Recording, name: str) -> Scenario:
    times = slot_times(recording)
    began_ms = recording.tasks[0].admitted_ms
    rows: dict[str, list[TraceRow]] = {}
    for task in recording.tasks:
        rows.setdefault(task.pool_id, []).append(_row(task, times[task.task_id], began_ms))
    replicas = sum(len(each) for each in recording.replicas.values())
    seconds = (max(task.life.ended_ms or task.admitted_ms for task in recording.tasks) - began_ms) / 1000
    return Scenario(
        name="replay",
        about=f"{len(recording.tasks)} recorded tasks of {seconds:,.0f} s on {replicas} replicas, from {name}",
        pools=tuple(_pool(recording, pool_id) for pool_id in sorted(rows)),
        flows=tuple(
            Flow(
                tenant="recorded", priority=Priority.INTERACTIVE, pool_id=pool_id, arrivals=Trace(tuple(rows[pool_id]))
            )
            for pool_id in sorted(rows)
        ),
        tasks=len(recording.tasks),
        claim_ms=recording.claim_ms,
    )


def _row(task: RecordedTask, served_ms: float, began_ms: int) -> TraceRow:
    cancelled = task.life.outcome == "cancelled"
    return TraceRow(
        float(task.admitted_ms - began_ms),
        task.life.tokens_in,
        task.life.tokens_out,
        task.tenant,
        task.told.priority,
        Recorded(
            max_tokens=task.told.max_tokens,
            deadline_ms=task.told.deadline_ms,
            session=task.told.session_id,
            served_ms=served_ms,
            cancel_ms=float(task.life.ended_ms - task.admitted_ms) if cancelled else -1.0,
            waited_ms=float(task.life.started_ms - task.admitted_ms) if task.life.started_ms else -1.0,
        ),
    )


def _pool(recording: Recording, pool_id: str) -> PoolPlan:
    spec = recording.specs.get(pool_id)
    seen = recording.replicas[pool_id] or {"none": 1}
    if spec is None:
        slots = max(seen.values())
        spec = PoolSpec(id=pool_id, engine=Engine.MOCK, model="recorded", ctx=CTX_MAX, slots=slots)
        counts = list(seen.values())
    else:
        counts = [spec.slots] * len(seen)
    return PoolPlan(
        spec=spec,
        replicas=tuple(
            ReplicaPlan(node=f"n{number}", hardware=RECORDED, slots=slots) for number, slots in enumerate(counts)
        ),
        weights_mb=0,
        kv_kb_per_token=0.0,
    )


def with_policy(scenario: Scenario, pools: Sequence[Mapping[str, Any]]) -> Scenario:
    """The same load under another policy: each entry is a part of a pool's specification, with its id. Tables are
    merged key by key, lists replaced. Raises ScenarioError."""
    entries: dict[str, Mapping[str, Any]] = {}
    there = [plan.spec.id for plan in scenario.pools]
    for entry in pools:
        if entry.get("id") not in there:
            raise ScenarioError(f"the policy is for pool {entry.get('id', '')!r}; there are {', '.join(there)}")
        entries[entry["id"]] = entry
    replace = msgspec.structs.replace
    return replace(
        scenario,
        pools=tuple(_governed(plan, entries.get(plan.spec.id, {})) for plan in scenario.pools),
        changes=tuple(
            replace(change, spec=_merged(change.spec, entries.get(change.spec.id, {}))) for change in scenario.changes
        ),
    )


def _governed(plan: PoolPlan, entry: Mapping[str, Any]) -> PoolPlan:
    """Replicas that had the pool's number of slots have the new one."""
    spec, replace = _merged(plan.spec, entry), msgspec.structs.replace
    replicas = tuple(
        replace(replica, slots=spec.slots) if replica.slots == plan.spec.slots else replica for replica in plan.replicas
    )
    return replace(plan, spec=spec, replicas=replicas)


def _merged(spec: PoolSpec, entry: Mapping[str, Any]) -> PoolSpec:
    try:
        return msgspec.convert(_overlaid(msgspec.to_builtins(spec), entry), PoolSpec)
    except msgspec.ValidationError as error:
        raise ScenarioError(f"the policy of pool {spec.id}: {error}") from error


def _overlaid(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    made = dict(base)
    for key, value in over.items():
        below = made.get(key)
        made[key] = _overlaid(below, value) if isinstance(value, Mapping) and isinstance(below, Mapping) else value
    return made
