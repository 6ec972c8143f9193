"""Who waits behind whom in one pool: hierarchical start-time fair queueing, by class and then by tenant.

Every start goes to the class with the least tag among those that have a task which could be placed, inside it to the
tenant with the least tag, inside that to its line (`line`: returned tasks, then earliest deadline, then admission). A
start is charged its expected slot time over the weight, at once, and is corrected in both directions when the real
time is known; so long generations pay for themselves (SFQ(D), Jin, Chase, Kaur 2004).

Bounds, for siblings f and g (two classes, or two tenants of a class) with weights w, tasks of at most c slot time, and
D tasks in flight, over any interval in which both wait, are not throttled, can be placed, and nobody passes:

    |W_f / w_f - W_g / w_g|  ≤  c_f / w_f + c_g / w_g                    when costs are as expected, whatever D is
                             ≤  (2 · D + 1) · (c_f / w_f + c_g / w_g)    when they are not

where W is the slot time of what was started in it. The first follows from tags: f starts only while S_f ≤ S_g, so
-c_g/w_g ≤ S_f - S_g ≤ c_f/w_f at all times. In the second each of at most D tasks in flight can move a tag by c/w.
Flows that come and go stay within (D + 1) · Σ c of the fluid ideal (GPS): measured by tests, not proven.
Nothing starves: between two starts of f a sibling g makes at most (c_f / w_f) · (w_g / least cost of g) + 1 of them.

Soft preemption: a task that would miss its deadline if it waited for one more task of a lower class goes before that
class, at most `soft_max_in_row` times in a row. It is charged as ever, so shares hold in the long run.

Costs: O(log n) for each of push, discard, pick, took and ended in waiting tasks and tenants, times the shapes that wait
(at most SHAPES_MAX). Not here: replicas, forecasts, and who may be admitted.
"""

from collections.abc import Iterator
from typing import Final

from llorch_scheduler.core import class_policy
from llorch_scheduler.core.backlog import Backlog
from llorch_scheduler.core.class_queue import ClassQueue
from llorch_scheduler.core.contest import IsOpen
from llorch_scheduler.core.flow import Flow, Root
from llorch_scheduler.core.full_queue import REFUSE, Verdict, victim
from llorch_scheduler.core.job import Job
from llorch_scheduler.core.line import entry_of
from llorch_scheduler.core.quota import never_fits
from llorch_scheduler.core.shares import Shares
from llorch_scheduler.core.tenants import Tenants
from llorch_scheduler.core.turns import Pick, Turns
from llorch_shared.pool_policy import CLASSES, DEFAULT_WEIGHT
from llorch_shared.queueing import Ahead
from llorch_shared.wire.policy import FairnessSpec
from llorch_shared.wire.registry import ClassLoad
from llorch_shared.wire.spec import PoolSpec, TimeoutSpec
from llorch_shared.wire.task import Priority

__all__ = ["REFUSE", "Ahead", "Pick", "PoolQueue", "Verdict"]

_LAST: Final = (1, 2**62)
_Charge = tuple[Flow, int, int, float, float, float]
"""(flow, its epoch, that of its class, slot time, tokens, KV cache) of a task in flight."""


class PoolQueue:
    """The waiting tasks of one pool, and what its running ones were charged."""

    __slots__ = (
        "_backlog",
        "_charges",
        "_lag_ms",
        "_now_ms",
        "_order",
        "_root",
        "_shares",
        "_tenants",
        "_turns",
        "classes",
    )

    def __init__(self) -> None:
        self._root: Final = Root()
        self._order: Final = [
            ClassQueue(
                priority,
                self._root,
                weight=DEFAULT_WEIGHT[priority],
                watched=priority is not CLASSES[-1],
                forgotten=self._flow_forgotten,
            )
            for priority in CLASSES
        ]
        self.classes: Final = {queue.priority: queue for queue in self._order}
        self._lag_ms = float(TimeoutSpec().wall_ms)
        self._shares: Final = Shares(FairnessSpec().share_window_ms)
        self._tenants: Final = Tenants()
        self._turns: Final = Turns(self._order, self._root, self._tenants)
        self._backlog: Final = Backlog(self._order)
        self._charges: Final[dict[str, _Charge]] = {}
        self._now_ms = 0

    def __len__(self) -> int:
        return self.size

    @property
    def size(self) -> int:
        """Tasks that wait."""
        higher, lower = self._order
        return higher.size + lower.size

    def configure(self, spec: PoolSpec, at_ms: int) -> None:
        """Apply a policy at once, to what waits and to what runs. O(n log n) if the order changes, else O(tenants)."""
        self._now_ms = at_ms
        self._tenants.configure(spec.admission.fairness)
        self._turns.preemption = spec.preemption
        self._lag_ms = float(spec.timeouts.wall_ms)
        self._shares.over(spec.admission.fairness.share_window_ms, at_ms)
        for queue in self._order:
            class_policy.apply(queue, spec)

    # what waits

    def push(self, job: Job, at_ms: int) -> None:
        self._now_ms = at_ms
        record = job.record
        queue = self.classes[record.priority]
        queue.add(job, queue.flows.get(record.tenant) or self._new_flow(queue, record.tenant))

    def discard(self, job: Job) -> bool:
        """Take it out, wherever it waits; false when it does not."""
        queue = self.classes[job.record.priority]
        flow = queue.flows.get(job.record.tenant)
        if flow is None or not queue.remove(job, flow):
            return False
        queue.wake(flow)
        queue.settle(flow)
        self._settle()
        return True

    def victim(self, newcomer: Job, spec: PoolSpec) -> Job | Verdict | None:
        """Who ends so that the newcomer has a place: see `full_queue`."""
        return victim(newcomer, self.classes, spec)

    def never_fits(self, job: Job) -> bool:
        """Its KV cache alone is over its tenant's quota: it would wait, and its tenant with it, until its deadline."""
        return never_fits(job, self._tenants.limits_of(job.record.tenant))

    # who is next

    def pick(self, is_open: IsOpen, at_ms: int) -> Pick | None:
        """Who goes next, among the shapes that a replica can take now. It keeps its place until `took`."""
        self._now_ms = at_ms
        return self._turns.pick(is_open, at_ms)

    def urgent(self, is_open: IsOpen, at_ms: int, within_ms: float) -> Job | None:
        """The task of a higher class that misses its deadline unless it starts within this time, though it could be
        in time: the one that must start first. For hard preemption; `is_open` then asks which shapes could be made
        room for."""
        self._now_ms = at_ms
        return self._turns.urgent(is_open, at_ms, within_ms)

    def wake_ms(self) -> int | None:
        """The earliest time at which a rate allows a task that waits for it: pick again then. It may have passed when
        nothing could be placed since."""
        return self._turns.wake_ms()

    # turns taken

    def took(self, pick: Pick, at_ms: int) -> None:
        """It was placed: it leaves its line and pays. Raises ValueError when it does not wait here.

        Who was held up by its shape keeps at most one longest attempt (`timeouts.wall_ms`) of what it missed."""
        job, passed_over = pick.job, pick.passed_over
        queue = self.classes[job.record.priority]
        flow = queue.flows.get(job.record.tenant)
        if flow is None or not queue.remove(job, flow):
            raise ValueError(f"task {job.task_id} does not wait here")
        if passed_over is not None:
            self.classes[passed_over].passed_in_row += 1
        if flow.queued:
            flow.measure(at_ms)
        self._start(job, flow, queue, at_ms)

    def goes_at_once(self, job: Job) -> bool:
        """Nobody waits and no rate or quota could hold the task back: a newcomer is whose turn it is."""
        queue = self.classes[job.record.priority]
        if self.size or queue.meter is not None:
            return False
        flow = queue.flows.get(job.record.tenant)
        return flow is not None and not flow.use.metered

    def took_at_once(self, job: Job, at_ms: int) -> None:
        """It `goes_at_once` and was placed: as `push`, `pick` and `took`, without standing in a line meanwhile."""
        self._now_ms = at_ms
        queue = self.classes[job.record.priority]
        flow = queue.flows[job.record.tenant]
        queue.join(self._root.virtual)
        flow.join(queue.virtual)
        self._start(job, flow, queue, at_ms)

    def _start(self, job: Job, flow: Flow, queue: ClassQueue, at_ms: int) -> None:
        """It has left its line, and pays."""
        queue.passed_in_row = 0
        if queue.meter is not None:
            queue.meter.add(1.0, at_ms)
        if (queue.virtual - flow.tag) * flow.weight > self._lag_ms:
            flow.join(queue.virtual - self._lag_ms / flow.weight)
        if (self._root.virtual - queue.tag) * queue.weight > self._lag_ms:
            queue.join(self._root.virtual - self._lag_ms / queue.weight)
        cost_ms = self._charge(job, flow, queue)
        flow.use.start(job.tokens, job.est_kv_mb, at_ms)
        queue.started(flow, cost_ms)
        root = self._root
        root.virtual = queue.tag if queue.tag > root.virtual else root.virtual
        queue.charge(cost_ms)
        self._shares.count(flow.share, cost_ms, at_ms)

    def ended(self, job: Job, actual_ms: float | None, tokens: float, at_ms: int) -> None:
        """It left its replica after that slot time; None: it never ran, and gets everything back. Tasks that nobody
        took are not known here, and nothing happens."""
        charge = self._charges.pop(job.record.task_id, None)
        if charge is None:
            return
        self._now_ms = at_ms
        flow, flow_epoch, class_epoch, cost_ms, expected, kv_mb = charge
        queue = self.classes[flow.priority]
        ran = actual_ms is not None
        more_ms = (actual_ms or 0.0) - cost_ms
        flow.use.end(kv_mb, (tokens if ran else 0.0) - expected, at_ms, ran=ran)
        self._shares.count(flow.share, more_ms, at_ms)
        queue.correct(more_ms, class_epoch)
        if flow.use.waiting:
            for waiting in list(flow.use.waiting):
                self.classes[waiting.priority].wake(waiting)
        queue.finished(flow, more_ms, flow_epoch)
        self._settle()

    def returned(self, job: Job, at_ms: int, *, used_ms: float | None = None) -> None:
        """It comes back from a replica that it kept busy for that long: the rest is given back. Push it afterwards."""
        self.ended(job, used_ms, 0.0, at_ms)

    def held(self, job: Job, at_ms: int) -> None:
        """After a takeover: it runs, and nobody here has picked it."""
        if job.record.task_id in self._charges:
            return
        self._now_ms = at_ms
        queue = self.classes[job.record.priority]
        flow = queue.flows.get(job.record.tenant) or self._new_flow(queue, job.record.tenant)
        flow.join(queue.virtual)
        cost_ms = self._charge(job, flow, queue)
        flow.use.start(job.tokens, job.est_kv_mb, at_ms, found=True)
        queue.started(flow, cost_ms, found=True)
        queue.charge(cost_ms)

    def _charge(self, job: Job, flow: Flow, queue: ClassQueue) -> float:
        cost_ms = job.cost_ms if job.cost_ms > 1.0 else 1.0
        self._charges[job.record.task_id] = (flow, flow.epoch, queue.epoch, cost_ms, job.tokens, job.est_kv_mb)
        return cost_ms

    def _settle(self) -> None:
        """Nothing waits or runs: the classes start even."""
        if not self._charges and not len(self):
            self._root.virtual = max(self._root.virtual, *(queue.tag for queue in self._order))

    def _new_flow(self, queue: ClassQueue, tenant: str) -> Flow:
        return queue.open(tenant, self._tenants.use_of(tenant), self._shares.of(tenant, queue.priority))

    def _flow_forgotten(self, flow: Flow) -> None:
        flow.share.live = False
        self._tenants.flow_forgotten(flow.use, self._now_ms)

    def shares(self) -> Iterator[tuple[str, Priority, float]]:
        """(tenant, class, part of the slot time lately)."""
        return iter(self._shares)

    def ahead_of(self, job: Job) -> Ahead:
        """What stands before a task that waits here."""
        queue = self.classes[job.record.priority]
        return self._backlog.ahead(queue, job.record.tenant, entry_of(job, edf=queue.edf)[:3], max(1.0, job.cost_ms))

    def ahead_of_newcomer(self, priority: Priority, tenant: str, due_ms: int) -> Ahead:
        """What would stand before a task that joined now."""
        queue = self.classes[priority]
        return self._backlog.ahead(queue, tenant, (due_ms if queue.edf else 0, _LAST, ""), 0.0)

    def class_loads(self) -> dict[str, ClassLoad]:
        """The backlog by class, with its longest flows."""
        return self._backlog.loads(self._now_ms)
