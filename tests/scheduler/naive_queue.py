"""The same policy as `llorch_scheduler.core.queue`, as plain lists that are searched from end to end each time.

Written from the policy's text for comparison only: no heaps, no lazy entries, no sums.
"""

from dataclasses import dataclass, field
from math import ceil

from llorch_scheduler.core.job import Job
from llorch_shared.pool_policy import CLASSES, class_policy, class_weight, tenant_limits
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Priority

NEVER = 2**62


@dataclass
class Member:
    """Something with a tag: a class, or a tenant in a class."""

    weight: int
    tag: float = 0.0
    lifts: int = 0
    lift: float = 0.0

    def join(self, virtual: float) -> None:
        if self.tag < virtual:
            self.lift, self.tag, self.lifts = virtual - self.tag, virtual, self.lifts + 1

    def correct(self, more: float, lifts: int) -> None:
        more /= self.weight
        if lifts != self.lifts:
            forgiven = self.lift
            self.lift = max(0.0, forgiven - more)
            more = max(0.0, more - forgiven)
        self.tag += more


@dataclass
class NaiveFlow(Member):
    tenant: str = ""
    born: int = 0
    jobs: list[Job] = field(default_factory=list)
    running: int = 0
    throttled_until: int | None = None


@dataclass
class NaiveClass(Member):
    flows: dict[str, NaiveFlow] = field(default_factory=dict)
    virtual: float = 0.0
    running: int = 0
    held_back: bool = False
    passed: int = 0

    @property
    def active(self) -> bool:
        return any(flow.jobs and flow.throttled_until is None for flow in self.flows.values())


@dataclass
class Bucket:
    used: float = 0.0
    seen: int = 0

    def opens(self, amount: float, rate: float, burst: float, at: int) -> int:
        self.drain(rate, at)
        over = self.used + min(amount, burst) - burst
        return 0 if over <= 1e-6 else at + max(1, ceil((over - 1e-6) / rate))

    def drain(self, rate: float, at: int) -> None:
        if at > self.seen:
            self.used, self.seen = max(0.0, self.used - rate * (at - self.seen)), at

    def add(self, amount: float, rate: float, at: int) -> None:
        self.drain(rate, at)
        self.used = max(0.0, self.used + amount)


class NaiveQueue:
    def __init__(self, spec: PoolSpec) -> None:
        self.virtual = 0.0
        self.classes = {priority: NaiveClass(1) for priority in CLASSES}
        self.charges: dict[str, tuple[Job, float, int, int]] = {}
        self.buckets: dict[tuple[str, str], Bucket] = {}
        self.births = 0
        self.configure(spec)

    def configure(self, spec: PoolSpec) -> None:
        self.spec = spec
        for priority, group in self.classes.items():
            group.weight = class_weight(spec, priority)
            group.held_back = False
            for flow in group.flows.values():
                flow.weight = tenant_limits(spec, flow.tenant).weight
                self.wake(group, flow)
        self.drop_unlimited()

    def drop_unlimited(self) -> None:
        """A bucket whose limit was taken away starts empty when there is one again."""
        for name, kind in list(self.buckets):
            limits = tenant_limits(self.spec, name)
            limit = {
                "rps": limits.rps,
                "tokens": limits.tokens_per_min,
                "class": class_policy(self.spec, Priority(name)).rate_limit_rps if kind == "class" else None,
            }
            if limit[kind] is None:
                del self.buckets[name, kind]

    def rank(self, job: Job) -> tuple[int, tuple[int, int], str]:
        if job.order[0] == 0:
            return (-1, job.order, job.task_id)
        return (job.due_ms if self.spec.deadlines.order == "edf" else 0, job.order, job.task_id)

    def activate(self, group: NaiveClass, flow: NaiveFlow) -> None:
        others = any(each.jobs and each.throttled_until is None for each in group.flows.values() if each is not flow)
        if not others:
            group.join(self.virtual)
        flow.join(group.virtual)

    def wake(self, group: NaiveClass, flow: NaiveFlow) -> None:
        if flow.throttled_until is not None and flow.jobs:
            self.activate(group, flow)
        flow.throttled_until = None

    def push(self, job: Job) -> None:
        group = self.classes[job.record.priority]
        flow = group.flows.get(job.record.tenant)
        if flow is None:
            self.births += 1
            weight = tenant_limits(self.spec, job.record.tenant).weight
            flow = NaiveFlow(weight, group.virtual, tenant=job.record.tenant, born=self.births)
            group.flows[job.record.tenant] = flow
        if not flow.jobs:
            self.activate(group, flow)
        flow.jobs.append(job)
        same = [each for each in flow.jobs if each.shape == job.shape]
        if flow.throttled_until is not None and min(same, key=self.rank) is job:
            self.wake(group, flow)

    def discard(self, job: Job) -> bool:
        group = self.classes[job.record.priority]
        flow = group.flows.get(job.record.tenant)
        if flow is None or job not in flow.jobs:
            return False
        flow.jobs.remove(job)
        self.wake(group, flow)
        self.forget()
        return True

    def forget(self) -> None:
        for group in self.classes.values():
            resting = group.running == 0 and not any(flow.jobs for flow in group.flows.values())
            for flow in list(group.flows.values()):
                if resting:
                    group.virtual = max(group.virtual, flow.tag)
                if not flow.jobs and not flow.running and (resting or flow.tag <= group.virtual):
                    del group.flows[flow.tenant]
        if not self.charges and not any(flow.jobs for group in self.classes.values() for flow in group.flows.values()):
            self.virtual = max(self.virtual, *(group.tag for group in self.classes.values()))

    def opens(self, job: Job, at: int) -> int:
        tenant = job.record.tenant
        limits = tenant_limits(self.spec, tenant)
        mine = [each for each, *_ in self.charges.values() if each.record.tenant == tenant]
        if limits.max_concurrent is not None and len(mine) >= limits.max_concurrent:
            return NEVER
        if limits.kv_mb is not None and sum(each.est_kv_mb for each in mine) + job.est_kv_mb > limits.kv_mb + 1e-6:
            return NEVER
        opens = 0
        if limits.rps is not None:
            opens = self.bucket(tenant, "rps").opens(1, limits.rps / 1_000, max(1.0, limits.rps), at)
        if limits.tokens_per_min is not None:
            rate, burst = limits.tokens_per_min / 60_000, float(limits.tokens_per_min)
            opens = max(opens, self.bucket(tenant, "tokens").opens(job.tokens, rate, burst, at))
        return opens

    def bucket(self, name: str, kind: str) -> Bucket:
        return self.buckets.setdefault((name, kind), Bucket())

    def held_back(self, priority: Priority, at: int) -> bool:
        limit = class_policy(self.spec, priority).rate_limit_rps
        if limit is None:
            return False
        group = self.classes[priority]
        closed = self.bucket(priority, "class").opens(1, limit / 1_000, max(1.0, limit), at) != 0
        if group.held_back and not closed:
            group.join(self.virtual)
        group.held_back = closed
        return closed

    def pick(self, shapes: set[object], at: int) -> tuple[Job, Priority | None] | None:
        for group in self.classes.values():
            for flow in sorted(group.flows.values(), key=lambda flow: (flow.throttled_until or 0, flow.tenant)):
                if flow.throttled_until is not None and flow.throttled_until <= at:
                    self.wake(group, flow)
        order = sorted(CLASSES, key=lambda priority: (self.classes[priority].tag, CLASSES.index(priority)))
        for priority in order:
            group = self.classes[priority]
            if not group.active or self.held_back(priority, at):
                continue
            while flows := [flow for flow in group.flows.values() if self.open_jobs(flow, shapes)]:
                flow = min(flows, key=lambda flow: (flow.tag, flow.born))
                job = min(self.open_jobs(flow, shapes), key=self.rank)
                opens = self.opens(job, at)
                if opens:
                    flow.throttled_until = opens
                    continue
                passing = self.passing(priority, job, shapes, at)
                return (passing, priority) if passing is not None else (job, None)
        return None

    def open_jobs(self, flow: NaiveFlow, shapes: set[object]) -> list[Job]:
        return [] if flow.throttled_until is not None else [job for job in flow.jobs if job.shape in shapes]

    def passing(self, turn: Priority, job: Job, shapes: set[object], at: int) -> Job | None:
        preemption = self.spec.preemption
        if preemption.mode == "disabled" or self.classes[turn].passed >= preemption.soft_max_in_row:
            return None
        for priority in CLASSES[: CLASSES.index(turn)]:
            group = self.classes[priority]
            if not group.active or self.held_back(priority, at):
                continue
            while heads := self.urgent_heads(group, shapes, at, max(1.0, job.cost_ms)):
                urgent = min(heads, key=lambda head: (head.due_ms - head.cost_ms, head.order))
                opens = self.opens(urgent, at)
                if not opens:
                    return urgent
                group.flows[urgent.record.tenant].throttled_until = opens
        return None

    def urgent_heads(self, group: NaiveClass, shapes: set[object], at: int, within: float) -> list[Job]:
        heads = []
        for flow in group.flows.values():
            for shape in {job.shape for job in self.open_jobs(flow, shapes)}:
                head = min((job for job in flow.jobs if job.shape == shape), key=self.rank)
                if at <= head.due_ms - head.cost_ms < at + within:
                    heads.append(head)
        return heads

    def took(self, job: Job, passed_over: Priority | None, at: int) -> None:
        priority, tenant = job.record.priority, job.record.tenant
        group = self.classes[priority]
        flow = group.flows[tenant]
        flow.jobs.remove(job)
        if passed_over is not None:
            self.classes[passed_over].passed += 1
        group.passed = 0
        limits, class_rps = tenant_limits(self.spec, tenant), class_policy(self.spec, priority).rate_limit_rps
        if class_rps is not None:
            self.bucket(priority, "class").add(1, class_rps / 1_000, at)
        if limits.rps is not None:
            self.bucket(tenant, "rps").add(1, limits.rps / 1_000, at)
        if limits.tokens_per_min is not None:
            self.bucket(tenant, "tokens").add(job.tokens, limits.tokens_per_min / 60_000, at)
        lag = float(self.spec.timeouts.wall_ms)
        flow.join(group.virtual - lag / flow.weight)
        group.join(self.virtual - lag / group.weight)
        self.charges[job.task_id] = (job, job.cost_ms, flow.lifts, group.lifts)
        group.virtual = max(group.virtual, flow.tag)
        flow.tag += job.cost_ms / flow.weight
        self.virtual = max(self.virtual, group.tag)
        group.tag += job.cost_ms / group.weight
        flow.running += 1
        group.running += 1
        self.forget()

    def ended(self, job: Job, actual: float | None, tokens: float, at: int) -> None:
        _, cost, lifts, class_lifts = self.charges.pop(job.task_id)
        tenant = job.record.tenant
        group = self.classes[job.record.priority]
        flow, limits = group.flows[tenant], tenant_limits(self.spec, tenant)
        if limits.rps is not None and actual is None:
            self.bucket(tenant, "rps").add(-1, limits.rps / 1_000, at)
        if limits.tokens_per_min is not None:
            used = tokens if actual is not None else 0.0
            self.bucket(tenant, "tokens").add(used - job.tokens, limits.tokens_per_min / 60_000, at)
        more = (actual or 0.0) - cost
        group.correct(more, class_lifts)
        for each in self.classes.values():
            if tenant in each.flows and each.flows[tenant].throttled_until == NEVER:
                self.wake(each, each.flows[tenant])
        flow.correct(more, lifts)
        flow.running -= 1
        group.running -= 1
        self.forget()
