"""Small scenarios whose outcome can be told from theory, and a simulation that remembers what it saw."""

from typing import Any

from llorch_scheduler.simulator.arrivals import Arrivals, Poisson
from llorch_scheduler.simulator.scenario import Flow, Hardware, PoolPlan, ReplicaPlan, Scenario
from llorch_scheduler.simulator.simulation import Simulation
from llorch_scheduler.simulator.sizes import Fixed, Sizes
from llorch_scheduler.simulator.tasks import SimTask
from llorch_shared.states import FINAL
from llorch_shared.wire.policy import QueueSpec
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import CTX_MAX, Engine, Priority

STEADY = Hardware(name="steady", vram_mb=80_000, prefill_per_s=1_000, step_ms=0.1)
"""A token takes 0.1 ms, however many tasks are in the batch."""
NONE = Fixed(0)
THOUSAND = Fixed(1_000)


def pool(
    *,
    replicas: int = 1,
    slots: int = 1,
    hardware: Hardware = STEADY,
    capacity: int = 100_000,
    nodes: int = 1,
    **plan: Any,
) -> PoolPlan:
    return PoolPlan(
        spec=PoolSpec(
            id="p1", engine=Engine.MOCK, model="m", ctx=CTX_MAX, slots=slots, queue=QueueSpec(capacity=capacity)
        ),
        replicas=tuple(
            ReplicaPlan(node=f"n{number % nodes}", hardware=hardware, slots=slots, **plan) for number in range(replicas)
        ),
        weights_mb=0,
        kv_kb_per_token=0.0,
    )


def flow(
    arrivals: Arrivals,
    *,
    priority: Priority = Priority.INTERACTIVE,
    prompt: Sizes = NONE,
    output: Sizes = THOUSAND,
    **fields: Any,
) -> Flow:
    return Flow(
        tenant=f"t-{priority}",
        pool_id="p1",
        priority=priority,
        arrivals=arrivals,
        prompt=prompt,
        output=output,
        **fields,
    )


def scenario(plan: PoolPlan, *flows: Flow, tasks: int, **fields: Any) -> Scenario:
    values: dict[str, Any] = {"store_ms": 0.0, "claim_ms": 0.0, **fields}
    return Scenario(name="small", about="", pools=(plan,), flows=flows, tasks=tasks, **values)


def both_classes(per_s: float, **fields: Any) -> tuple[Flow, Flow]:
    return (
        flow(Poisson(per_s / 2), **fields),
        flow(Poisson(per_s / 2), priority=Priority.BATCH, **fields),
    )


class Watched(Simulation):
    """Remembers the order of starts and how each task ended."""

    def __init__(self, wanted: Scenario, seed: int = 1) -> None:
        self.starts: list[SimTask] = []
        self.ends: dict[str, list[str]] = {}
        self.versions: dict[int, str] = {}
        """Engine version that a task started on, by its number."""
        self.finals: list[RunRecord] = []
        super().__init__(wanted, seed)

    def started(self, task: SimTask, record: RunRecord, version: str) -> None:
        self.starts.append(task)
        self.versions[task.number] = version
        super().started(task, record, version)

    def _stored(self, record: RunRecord) -> None:
        if record.state in FINAL:
            self.finals.append(record)
        super()._stored(record)

    def _end(self, task: SimTask, outcome: str) -> None:
        self.ends.setdefault(task.task_id, []).append(outcome)
        super()._end(task, outcome)

    def check_finished(self) -> None:
        """Every task that arrived has ended, once; nothing is left in anybody's hands; no slot was taken twice."""
        assert self.arrived_count == self.scenario.tasks == len(self.ends)
        assert all(len(ends) == 1 for ends in self.ends.values())
        assert not self.tasks
        assert not self.core.jobs
        for plan in self.scenario.pools:
            assert self.measured.busy[plan.spec.id].value == 0
            assert self.measured.busy[plan.spec.id].peak <= sum(replica.slots for replica in plan.replicas)
        for depth in self.measured.depth.values():
            assert depth.value == 0
