"""What a scenario is made of, as data: hardware, pools of replicas, flows of tasks, failures, changes of policy.

An engine decodes all its tasks in one batch: a step takes `step_ms + step_per_task_ms · tasks` and gives each task one
token. Prompts are read at `prefill_per_s` tokens a second, shared by the tasks that are being read; such a task
counts for the length of a step like any other.
"""

import msgspec

from llorch_scheduler.simulator.arrivals import Arrivals, Trace
from llorch_scheduler.simulator.sizes import Fixed, Sizes
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Priority


class ScenarioError(ValueError):
    """The scenario cannot be simulated: its parts contradict each other."""


class Hardware(msgspec.Struct, frozen=True, kw_only=True):
    """A device, with the speed at which it serves the model of its pool."""

    name: str
    vram_mb: int
    prefill_per_s: float
    step_ms: float
    step_per_task_ms: float = 0.0


class ReplicaPlan(msgspec.Struct, frozen=True, kw_only=True):
    node: str
    hardware: Hardware
    slots: int
    provision_ms: float = 0.0
    """Fetching engine and model, before a first start only."""
    load_ms: float = 5_000.0
    """From process start to ready, at every start."""
    warm: bool = True
    """Ready when the simulation begins; otherwise it provisions and loads first."""
    engine_version: str = "v1"
    features: tuple[str, ...] = ()
    """What its self-test shows. Only an engine with `interruptible_decode` stops a task when asked to."""


class PoolPlan(msgspec.Struct, frozen=True, kw_only=True):
    spec: PoolSpec
    replicas: tuple[ReplicaPlan, ...]
    weights_mb: int
    kv_kb_per_token: float
    """KV cache. An engine reserves it for all its slots at the pool's context when it starts."""

    def free_vram_mb(self, replica: ReplicaPlan) -> int:
        """What is left once model and cache are loaded. Raises ScenarioError if they do not fit."""
        cache_mb = replica.slots * self.spec.ctx * self.kv_kb_per_token / 1024
        free_mb = int(replica.hardware.vram_mb - self.weights_mb - cache_mb)
        if free_mb < 0:
            raise ScenarioError(
                f"pool {self.spec.id}: {replica.slots} slots of {self.spec.ctx} tokens and the model need "
                f"{-free_mb} MB more than {replica.hardware.name} has"
            )
        return free_mb


class Flow(msgspec.Struct, frozen=True, kw_only=True):
    """Tasks of one tenant and class. A refused client comes back when it was told to, until `patience_s` is over."""

    tenant: str
    priority: Priority
    pool_id: str
    arrivals: Arrivals
    prompt: Sizes = Fixed(256)
    output: Sizes = Fixed(128)
    max_tokens: int = 0
    """What clients ask for at most; 0: they know how long their answer will be."""
    deadlines_ms: tuple[int, ...] = (3_600_000,)
    """Each as likely, in turn."""
    patience_s: float = 60.0
    sessions: int = 100
    """Different sessions that tasks belong to, in turn."""


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A node is gone at `at_s`, with all its replicas; it comes back after `back_after_s`, or never."""

    node: str
    at_s: float
    back_after_s: float | None = None


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """An operator stores another specification of a pool."""

    at_s: float
    spec: PoolSpec


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    about: str
    pools: tuple[PoolPlan, ...]
    flows: tuple[Flow, ...]
    tasks: int
    """Tasks that arrive; the simulation ends when all of them have ended."""
    failures: tuple[Failure, ...] = ()
    changes: tuple[Change, ...] = ()
    store_ms: float = 2.0
    """From a decision to its run record, placement and acknowledgement being stored."""
    claim_ms: float = 1.0
    """From a stored placement to the node's claim, and from a wish to preempt to the node that hears it."""

    def check(self) -> None:
        """Raises ScenarioError."""
        pools = {pool.spec.id for pool in self.pools}
        nodes = {replica.node for pool in self.pools for replica in pool.replicas}
        for pool in self.pools:
            for replica in pool.replicas:
                pool.free_vram_mb(replica)
        for flow in self.flows:
            if flow.pool_id not in pools:
                raise ScenarioError(f"a flow of {flow.tenant} goes to pool {flow.pool_id}, which is not there")
        for failure in self.failures:
            if failure.node not in nodes:
                raise ScenarioError(f"node {failure.node} is to fail and is not there")
        for change in self.changes:
            if change.spec.id not in pools:
                raise ScenarioError(f"pool {change.spec.id} is to change and is not there")
        if self.tasks < 1 or not self.flows:
            raise ScenarioError("no task would arrive")


def replayed(scenario: Scenario, trace: Trace) -> Scenario:
    """The same cluster under a recorded load, all of it on the first pool; every row is a task."""
    like = scenario.flows[0]
    flow = msgspec.structs.replace(like, tenant="trace", pool_id=scenario.pools[0].spec.id, arrivals=trace)
    return msgspec.structs.replace(scenario, flows=(flow,), tasks=len(trace.rows))
