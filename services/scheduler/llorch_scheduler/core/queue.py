"""Who waits behind whom in one pool: hierarchical start-time fair queueing, by class and then by tenant.

Every start goes to the class with the least tag among those that have a task which could be placed, inside it to the
tenant with the least tag, inside that to its line (`line`: returned tasks, then earliest deadline, then admission). A
start is charged its expected slot time over the weight, at once, and is corrected in both directions when the real
time is known; so long generations pay for themselves (SFQ(D), Jin, Chase, Kaur 2004).

Bounds, for siblings f and g (two classes, or two tenants of a class) with weights w, tasks of at most c slot time, and
D tasks in flight, over any interval in which both wait, are not throttled and can be placed:

    |W_f / w_f - W_g / w_g|  ≤  c_f / w_f + c_g / w_g                    when costs are as expected, whatever D is
                             ≤  (2 · D + 1) · (c_f / w_f + c_g / w_g)    when they are not

where W is the slot time of what was started in it. The first follows from tags: f starts only while S_f ≤ S_g, so
-c_g/w_g ≤ S_f - S_g ≤ c_f/w_f at all times. In the second each of at most D tasks in flight can move a tag by c/w.
Nothing starves: between two starts of f a sibling g makes at most (c_f / w_f) · (w_g / least cost of g) + 1 of them.

Soft preemption: a task that would miss its deadline if it waited for one more task of a lower class goes before that
class, at most `soft_max_in_row` times in a row. It is charged as ever, so shares hold in the long run.

Costs: O(log n) for each of push, discard, pick, took and ended in waiting tasks and tenants, times the shapes that wait
(at most SHAPES_MAX). Not here: replicas, forecasts, and who may be admitted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush, nlargest
from operator import attrgetter
from typing import Final

from llorch_scheduler.core.ahead import Ahead
from llorch_scheduler.core.class_queue import ClassQueue
from llorch_scheduler.core.contest import IsOpen
from llorch_scheduler.core.flow import Flow, Root
from llorch_scheduler.core.full_queue import REFUSE, Verdict, victim
from llorch_scheduler.core.job import Job
from llorch_scheduler.core.line import entry_of
from llorch_scheduler.core.quota import UNTIL_END, TenantUse, never_fits, starts_meter
from llorch_scheduler.core.shares import Shares
from llorch_shared.pool_policy import CLASSES, DEFAULT_WEIGHT, class_policy, class_weight
from llorch_shared.wire.policy import FairnessSpec, FullPolicy, PreemptionSpec, TenantLimits
from llorch_shared.wire.registry import ClassLoad, FlowLoad
from llorch_shared.wire.spec import PoolSpec, TimeoutSpec
from llorch_shared.wire.task import Priority

__all__ = ["REFUSE", "Ahead", "Pick", "PoolQueue", "Verdict"]

FLOWS_TOLD_MAX: Final = 64
"""Flows in a load report: those with the most work."""
_LAST: Final = (1, 2**62)
_tag: Final = attrgetter("tag")


@dataclass(frozen=True, slots=True)
class Pick:
    job: Job
    passed_over: Priority | None = None
    """The class whose turn it was, when the task goes before it to be in time."""


@dataclass(slots=True)
class _Charge:
    """What a task in flight was charged."""

    flow: Flow
    flow_epoch: int
    class_epoch: int
    cost_ms: float
    tokens: float
    kv_mb: float


class PoolQueue:
    """The waiting tasks of one pool, and what its running ones were charged."""

    __slots__ = (
        "_charges",
        "_fairness",
        "_lag_ms",
        "_limits",
        "_now_ms",
        "_preemption",
        "_quiet",
        "_root",
        "_shares",
        "_uses",
        "_wakes",
        "classes",
    )

    def __init__(self) -> None:
        self._root: Final = Root()
        self.classes: Final = {
            priority: ClassQueue(
                priority,
                self._root,
                weight=DEFAULT_WEIGHT[priority],
                watched=priority is not CLASSES[-1],
                forgotten=self._flow_forgotten,
            )
            for priority in CLASSES
        }
        self._fairness = FairnessSpec()
        self._limits: dict[str, TenantLimits] = {}
        self._preemption = PreemptionSpec()
        self._lag_ms = float(TimeoutSpec().wall_ms)
        self._shares: Final = Shares(self._fairness.share_window_ms)
        self._uses: Final[dict[str, TenantUse]] = {}
        self._charges: Final[dict[str, _Charge]] = {}
        self._wakes: list[tuple[int, Priority, int, Flow]] = []
        self._quiet: list[tuple[int, str]] = []
        self._now_ms = 0

    def __len__(self) -> int:
        return sum(len(queue) for queue in self.classes.values())

    def configure(self, spec: PoolSpec, at_ms: int) -> None:
        """Apply a policy at once, to what waits and to what runs. O(n log n) if the order changes, else O(tenants)."""
        self._now_ms = max(self._now_ms, at_ms)
        fairness = self._fairness = spec.admission.fairness
        self._limits = {each.id: each for each in reversed(fairness.tenants)}
        self._preemption = spec.preemption
        self._lag_ms = float(spec.timeouts.wall_ms)
        self._shares.over(fairness.share_window_ms, at_ms)
        for use in self._uses.values():
            use.limit(self._limits_of(use.tenant))
        for priority, queue in self.classes.items():
            queue.weight = class_weight(spec, priority)
            queue.meter = starts_meter(class_policy(spec, priority).rate_limit_rps, queue.meter)
            queue.wake_ms = 0
            queue.flows_weight = 0
            for flow in queue.flows.values():
                flow.weight = flow.use.limits.weight
                queue.flows_weight += flow.weight if flow.queued else 0
                queue.wake(flow)
            queue.reorder(edf=spec.deadlines.order == "edf", by_age=spec.queue.full_policy is not FullPolicy.REJECT)

    # what waits

    def push(self, job: Job, at_ms: int) -> None:
        self._now_ms = max(self._now_ms, at_ms)
        queue = self.classes[job.record.priority]
        queue.add(job, self._flow(queue, job.record.tenant))

    def discard(self, job: Job) -> bool:
        """Take it out, wherever it waits; false when it does not."""
        queue = self.classes[job.record.priority]
        flow = queue.flows.get(job.record.tenant)
        if flow is None or not queue.remove(job, flow):
            return False
        queue.wake(flow)
        queue.settle(flow)
        self._settle_root()
        return True

    def victim(self, newcomer: Job, spec: PoolSpec) -> Job | Verdict | None:
        """Who ends so that the newcomer has a place: see `full_queue`."""
        return victim(newcomer, self.classes, spec)

    def never_fits(self, job: Job) -> bool:
        """Its KV cache alone is over its tenant's quota: it would wait, and its tenant with it, until its deadline."""
        return never_fits(job, self._limits_of(job.record.tenant))

    # who is next

    def pick(self, is_open: IsOpen, at_ms: int) -> Pick | None:
        """Who goes next, among the shapes that a replica can take now. It keeps its place until `took`."""
        self._wake(at_ms)
        for queue in sorted(self.classes.values(), key=_tag):
            if queue.active == 0 or self._held_back(queue, at_ms):
                continue
            job = queue.first(is_open, at_ms, self._throttle)
            if job is not None:
                return self._passing(queue, job, is_open, at_ms) or Pick(job)
        return None

    def urgent(self, is_open: IsOpen, at_ms: int, within_ms: float) -> Job | None:
        """The task of a higher class that misses its deadline unless it starts within this time, though it could be
        in time: the one that must start first. For hard preemption; `is_open` then asks which shapes could be made
        room for."""
        self._wake(at_ms)
        for queue in self.classes.values():
            if queue.watched and queue.active and not self._held_back(queue, at_ms):
                job = queue.urgent(is_open, at_ms, within_ms, self._throttle)
                if job is not None:
                    return job
        return None

    def wake_ms(self) -> int | None:
        """The earliest time at which a rate allows a task that waits for it: pick again then."""
        while self._wakes and not _still_waits(self._wakes[0]):
            heappop(self._wakes)
        times = [queue.wake_ms for queue in self.classes.values() if queue.wake_ms and queue.active]
        if self._wakes:
            times.append(self._wakes[0][0])
        return min(times, default=None)

    def _passing(self, turn: ClassQueue, job: Job, is_open: IsOpen, at_ms: int) -> Pick | None:
        """A task of a higher class that cannot wait for `job`, whose turn it is."""
        preemption = self._preemption
        if preemption.mode == "disabled" or turn.passed_in_row >= preemption.soft_max_in_row:
            return None
        for queue in self.classes.values():
            if queue is turn:
                return None
            if queue.watched and queue.active and not self._held_back(queue, at_ms):
                urgent = queue.urgent(is_open, at_ms, max(1.0, job.cost_ms), self._throttle)
                if urgent is not None:
                    return Pick(urgent, turn.priority)
        return None

    def _held_back(self, queue: ClassQueue, at_ms: int) -> bool:
        """Over the rate limit of the class."""
        if queue.meter is None:
            return False
        opens_ms = queue.meter.opens_ms(1.0, at_ms)
        if opens_ms == 0 and queue.wake_ms:
            queue.join(self._root.virtual)
        queue.wake_ms = opens_ms
        return opens_ms != 0

    def _throttle(self, flow: Flow, opens_ms: int) -> None:
        queue = self.classes[flow.priority]
        queue.throttle(flow)
        flow.wake_ms = opens_ms
        if opens_ms == UNTIL_END:
            flow.use.waiting.append(flow)
            return
        heappush(self._wakes, (opens_ms, flow.priority, flow.serial, flow))
        if len(self._wakes) > 2 * sum(len(each.flows) for each in self.classes.values()) + 64:
            self._wakes = list({id(entry[3]): entry for entry in self._wakes if _still_waits(entry)}.values())
            heapify(self._wakes)

    def _wake(self, at_ms: int) -> None:
        self._now_ms = max(self._now_ms, at_ms)
        while self._wakes and self._wakes[0][0] <= at_ms:
            entry = heappop(self._wakes)
            if _still_waits(entry):
                self.classes[entry[1]].wake(entry[3])
        while self._quiet and self._quiet[0][0] <= at_ms:
            self._forget_use(heappop(self._quiet)[1])

    # turns taken

    def took(self, pick: Pick, at_ms: int) -> None:
        """It was placed: it leaves its line and pays."""
        self._now_ms = max(self._now_ms, at_ms)
        job = pick.job
        queue = self.classes[job.record.priority]
        flow = queue.flows[job.record.tenant]
        if not queue.remove(job, flow):
            raise ValueError(f"task {job.task_id} does not wait here")
        if pick.passed_over is not None:
            self.classes[pick.passed_over].passed_in_row += 1
        queue.passed_in_row = 0
        if queue.meter is not None:
            queue.meter.add(1.0, at_ms)
        flow.measure(at_ms)
        charge = self._charge(job, flow, queue)
        flow.use.start(charge.tokens, charge.kv_mb, at_ms)
        queue.started(flow, charge.cost_ms, self._lag_ms)
        queue.join(self._root.virtual - self._lag_ms / queue.weight)
        self._root.virtual = max(self._root.virtual, queue.tag)
        queue.charge(charge.cost_ms)
        self._shares.count(flow.tenant, queue.priority, charge.cost_ms, at_ms)

    def ended(self, job: Job, actual_ms: float | None, tokens: float, at_ms: int) -> None:
        """It left its replica after that slot time; None: it never ran, and gets everything back. Tasks that nobody
        took are not known here, and nothing happens."""
        self._now_ms = max(self._now_ms, at_ms)
        charge = self._charges.pop(job.task_id, None)
        if charge is None:
            return
        flow = charge.flow
        queue = self.classes[flow.priority]
        more_ms = (actual_ms or 0.0) - charge.cost_ms
        used = tokens if actual_ms is not None else 0.0
        flow.use.end(charge.kv_mb, used - charge.tokens, at_ms, ran=actual_ms is not None)
        self._shares.count(flow.tenant, flow.priority, more_ms, at_ms)
        queue.correct(more_ms, charge.class_epoch)
        for waiting in list(flow.use.waiting):
            self.classes[waiting.priority].wake(waiting)
        queue.finished(flow, more_ms, charge.flow_epoch)
        self._settle_root()

    def returned(self, job: Job, at_ms: int, *, used_ms: float | None = None) -> None:
        """It comes back from a replica that it kept busy for that long: the rest is given back. Push it afterwards."""
        self.ended(job, used_ms, 0.0, at_ms)

    def held(self, job: Job, at_ms: int = 0) -> None:
        """After a takeover: it runs, and nobody here has picked it."""
        if job.task_id in self._charges:
            return
        self._now_ms = max(self._now_ms, at_ms)
        queue = self.classes[job.record.priority]
        flow = self._flow(queue, job.record.tenant)
        charge = self._charge(job, flow, queue)
        flow.use.start(charge.tokens, charge.kv_mb, self._now_ms, found=True)
        queue.found(flow, charge.cost_ms)
        queue.charge(charge.cost_ms)

    def _charge(self, job: Job, flow: Flow, queue: ClassQueue) -> _Charge:
        cost_ms = max(1.0, job.cost_ms)
        charge = _Charge(flow, flow.epoch, queue.epoch, cost_ms, job.tokens, job.est_kv_mb)
        self._charges[job.task_id] = charge
        return charge

    def _settle_root(self) -> None:
        """Nothing waits or runs: the classes start even."""
        if not self._charges and not any(queue.size for queue in self.classes.values()):
            self._root.virtual = max(self._root.virtual, *map(_tag, self.classes.values()))

    # flows and tenants

    def _flow(self, queue: ClassQueue, tenant: str) -> Flow:
        flow = queue.flows.get(tenant)
        if flow is None:
            use = self._uses.get(tenant)
            if use is None:
                use = self._uses[tenant] = TenantUse(tenant, self._limits_of(tenant))
            use.flows += 1
            flow = queue.new_flow(tenant, use)
        return flow

    def _limits_of(self, tenant: str) -> TenantLimits:
        return self._limits.get(tenant) or self._fairness.default

    def _flow_forgotten(self, flow: Flow) -> None:
        flow.use.flows -= 1
        self._forget_use(flow.use.tenant)

    def _forget_use(self, tenant: str) -> None:
        """A tenant without flows is remembered while its meters still tell something."""
        use = self._uses.get(tenant)
        if use is None or use.flows:
            return
        quiet_ms = use.quiet_ms(self._now_ms)
        if quiet_ms > self._now_ms:
            heappush(self._quiet, (quiet_ms, tenant))
        else:
            del self._uses[tenant]

    # what is told

    def shares(self, at_ms: int) -> Iterator[tuple[str, Priority, float]]:
        """(tenant, class, part of the slot time lately)."""
        self._now_ms = max(self._now_ms, at_ms)
        return iter(self._shares)

    def ahead_of(self, job: Job) -> Ahead:
        """What stands before a task that waits here."""
        queue = self.classes[job.record.priority]
        flow = queue.flows.get(job.record.tenant)
        before = (0, 0.0)
        if flow is not None:
            entry = entry_of(job, edf=queue.edf)
            before = _sum(line.before(entry[:3]) for line in flow.lines.values())
        cost_ms = max(1.0, job.cost_ms)
        return self._ahead(queue, flow, job.record.tenant, before, own=(1, cost_ms))

    def ahead_of_newcomer(self, priority: Priority, tenant: str, due_ms: int) -> Ahead:
        """What would stand before a task that joined now."""
        queue = self.classes[priority]
        flow = queue.flows.get(tenant)
        before = (0, 0.0)
        if flow is not None:
            rank = due_ms if queue.edf else 0
            before = _sum(line.before((rank, _LAST, "")) for line in flow.lines.values())
        return self._ahead(queue, flow, tenant, before, own=(0, 0.0))

    def _ahead(
        self, queue: ClassQueue, flow: Flow | None, tenant: str, before: tuple[int, float], *, own: tuple[int, float]
    ) -> Ahead:
        weight = flow.weight if flow is not None else self._limits_of(tenant).weight
        waits = flow is not None and flow.queued > 0
        others = [each for each in self.classes.values() if each is not queue and each.size]
        return Ahead(
            flow_tasks=before[0],
            flow_work_ms=before[1],
            flow_weight=weight,
            flows_weight=queue.flows_weight + (0 if waits else weight),
            class_tasks=queue.size - own[0],
            class_work_ms=max(0.0, queue.work_ms - own[1]),
            class_weight=queue.weight,
            other_tasks=sum(each.size for each in others),
            other_work_ms=sum(each.work_ms for each in others),
            other_weight=sum(each.weight for each in others),
        )

    def class_loads(self) -> dict[str, ClassLoad]:
        """The backlog by class, with the FLOWS_TOLD_MAX flows that have the most work. O(waiting tenants)."""
        return {str(priority): _class_load(queue) for priority, queue in self.classes.items()}


def _class_load(queue: ClassQueue) -> ClassLoad:
    waiting = ((flow.work_ms, flow.tenant, flow) for flow in queue.flows.values() if flow.queued)
    return ClassLoad(
        queued=queue.size,
        work_ms=round(queue.work_ms, 3),
        weight=queue.weight,
        flows_weight=queue.flows_weight,
        flows={
            tenant: FlowLoad(
                queued=flow.queued, work_ms=round(work_ms, 3), weight=flow.weight, pace_ms=round(flow.pace_ms, 3)
            )
            for work_ms, tenant, flow in nlargest(FLOWS_TOLD_MAX, waiting)
        },
    )


def _still_waits(entry: tuple[int, Priority, int, Flow]) -> bool:
    return entry[3].throttled and entry[3].wake_ms == entry[0]


def _sum(parts: Iterator[tuple[int, float]]) -> tuple[int, float]:
    tasks, work_ms = 0, 0.0
    for more_tasks, more_ms in parts:
        tasks += more_tasks
        work_ms += more_ms
    return tasks, work_ms
