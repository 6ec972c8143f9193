"""One class of a pool: its flows (one per tenant) take turns by weight; inside a flow the line decides.

A flow that is over a quota is throttled: it leaves every contest until the quota allows its next task, and holds up
nobody else. Flows that neither wait nor run are forgotten once virtual time has passed their tag, so memory follows
what is there and not what has ever been.

Not here: which class goes next (`queue`), quotas themselves (`quota`), places in a full queue (`full_queue`).
"""

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Final

from llorch_scheduler.core.contest import MIXED, SHAPES_MAX, Contest, IsOpen, open_job
from llorch_scheduler.core.flow import Flow, Root, Tagged
from llorch_scheduler.core.job import Job
from llorch_scheduler.core.line import Line, entry_of
from llorch_scheduler.core.quota import Meter, TenantUse
from llorch_shared.wire.task import Priority

IDLE_MAX: Final = 16_384
"""Idle flows ahead of virtual time that are remembered. Beyond it the one least ahead is forgotten: it gains at most
one task."""


class ClassQueue(Tagged):
    """`virtual` is the virtual time of its flows; its own tag is its place among the classes."""

    __slots__ = (
        "_forgotten",
        "_idle",
        "_root",
        "_serial",
        "active",
        "by_age",
        "contests",
        "edf",
        "flows",
        "flows_weight",
        "fresh",
        "meter",
        "passed_in_row",
        "priority",
        "running",
        "seq",
        "size",
        "virtual",
        "wake_ms",
        "watched",
        "work_ms",
    )

    def __init__(
        self, priority: Priority, root: Root, *, weight: int, watched: bool, forgotten: Callable[[Flow], None]
    ) -> None:
        super().__init__(weight, 0.0)
        self._root: Final = root
        self.priority: Final = priority
        self.watched: Final = watched
        """Whether its urgent tasks may pass over a lower class."""
        self.seq = 0
        """Highest admission sequence that arrived."""
        self.size = 0
        self.fresh = 0
        """Of these: new ones, that still take a place of the admission queue."""
        self.work_ms = 0.0
        self.running = 0
        self.flows: dict[str, Flow] = {}
        self.flows_weight = 0
        """Sum of the weights of the flows that wait."""
        self.active = 0
        """Flows that wait and are not throttled."""
        self.virtual = 0.0
        self.edf = True
        self.meter: Meter | None = None
        self.wake_ms = 0
        """Until when `rate_limit_rps` holds the class back; 0 when it does not."""
        self.passed_in_row = 0
        self.contests: dict[object, Contest] = {}
        self.by_age: Line | None = None
        """Its new tasks in order of admission; None unless a full policy asks for it."""
        self._idle: list[tuple[float, int, Flow]] = []
        self._serial = 0
        self._forgotten: Final = forgotten

    def __len__(self) -> int:
        return self.size

    # what waits

    def new_flow(self, tenant: str, use: TenantUse) -> Flow:
        self._serial += 1
        flow = self.flows[tenant] = Flow(tenant, self.priority, use, tag=self.virtual, serial=self._serial)
        return flow

    def add(self, job: Job, flow: Flow) -> None:
        line = self._line_of(job, flow)
        was_empty = line.size == 0
        entry = entry_of(job, edf=self.edf)
        line.add(entry)
        if flow.queued == 0:
            self.flows_weight += flow.weight
            self._activate(flow)
        self._count(job, flow, 1, entry[3])
        is_head = line.head is job
        if flow.throttled:
            if is_head:
                self.wake(flow)
            return
        contest = self.contests[line.key]
        if was_empty:
            contest.enter(line, flow)
        if is_head and self.watched:
            contest.watch(line)

    def remove(self, job: Job, flow: Flow) -> bool:
        """Take it out of its line; false when it does not wait here."""
        entry = entry_of(job, edf=self.edf)
        line = flow.lines.get(job.shape)
        if line is None or not line.remove(entry):
            line = flow.lines.get(MIXED)
            if line is None or not line.remove(entry):
                return False
        self._count(job, flow, -1, entry[3])
        contest = self.contests[line.key]
        if line.size == 0:
            line.stamp = None
            del flow.lines[line.key]
            contest.lines -= 1
            if contest.lines == 0:
                del self.contests[line.key]
        elif self.watched and not flow.throttled:
            contest.watch(line)
        if flow.queued == 0:
            self.flows_weight -= flow.weight
            self.active -= not flow.throttled
            self._stop_waiting(flow)
            flow.last_ms = -1
        return True

    def _count(self, job: Job, flow: Flow, jobs: int, cost_ms: float) -> None:
        flow.queued += jobs
        self.size += jobs
        self.work_ms = self.work_ms + jobs * cost_ms if self.size else 0.0
        if job.order[0] != 0:
            self.fresh += jobs
            if self.by_age is not None:
                entry = entry_of(job, edf=False)
                if jobs > 0:
                    self.by_age.add(entry)
                else:
                    self.by_age.remove(entry)

    def _line_of(self, job: Job, flow: Flow) -> Line:
        key: object = job.shape
        if key not in self.contests and len(self.contests) >= SHAPES_MAX:
            key = MIXED
        line = flow.lines.get(key)
        if line is None:
            self._serial += 1
            line = flow.lines[key] = Line(flow, key, self._serial)
            contest = self.contests.get(key)
            if contest is None:
                contest = self.contests[key] = Contest()
            contest.lines += 1
        return line

    # who is next

    def first(self, is_open: IsOpen, at_ms: int, throttle: Callable[[Flow, int], None]) -> Job | None:
        """The task whose turn it is among those that could be placed. Flows over their quota are throttled on the way:
        each is looked at again only when something has changed for it."""
        while (flow := self._first_flow(is_open)) is not None:
            job = self._open_job_of(flow, is_open)
            opens_ms = flow.use.opens_ms(job, at_ms)
            if opens_ms == 0:
                return job
            throttle(flow, opens_ms)
        return None

    def urgent(
        self, is_open: IsOpen, at_ms: int, within_ms: float, throttle: Callable[[Flow, int], None]
    ) -> Job | None:
        """The task that must start first to be in time, if it must start within this time and still can be in time."""
        while (job := self._most_urgent(is_open, at_ms, within_ms)) is not None:
            flow = self.flows[job.record.tenant]
            opens_ms = flow.use.opens_ms(job, at_ms)
            if opens_ms == 0:
                return job
            throttle(flow, opens_ms)
        return None

    def _first_flow(self, is_open: IsOpen) -> Flow | None:
        best: Flow | None = None
        for key, contest in self.contests.items():
            line = contest.top()
            if line is None or line.flow is None or (best is not None and _key(best) <= _key(line.flow)):
                continue
            if key is not MIXED:
                if is_open(line.head.shape):
                    best = line.flow
            elif (line := contest.top_open(is_open)) is not None and line.flow is not None:
                best = line.flow if best is None or _key(line.flow) < _key(best) else best
        return best

    def _open_job_of(self, flow: Flow, is_open: IsOpen) -> Job:
        if len(flow.lines) == 1:
            (line,) = flow.lines.values()
            if line.key is not MIXED:
                return line.head
        heads = [job for line in flow.lines.values() if (job := open_job(line, is_open)) is not None]
        return min(heads, key=lambda job: entry_of(job, edf=self.edf)[:3])

    def _most_urgent(self, is_open: IsOpen, at_ms: int, within_ms: float) -> Job | None:
        best: Job | None = None
        for contest in self.contests.values():
            job = contest.urgent(at_ms, within_ms)
            if job is None or (best is not None and _latest(best) <= _latest(job)):
                continue
            if is_open(job.shape):
                best = job
        return best

    # turns taken

    def started(self, flow: Flow, cost_ms: float, lag_ms: float) -> None:
        """Charge the flow. One that was held up by its shape keeps at most `lag_ms` of slot time of what it missed."""
        flow.join(self.virtual - lag_ms / flow.weight)
        self.virtual = max(self.virtual, flow.tag)
        flow.charge(cost_ms)
        flow.running += 1
        self.running += 1
        if self._idle:
            self._forget()

    def found(self, flow: Flow, cost_ms: float) -> None:
        """One of its tasks runs, started by another scheduler."""
        flow.join(self.virtual)
        flow.charge(cost_ms)
        flow.running += 1
        self.running += 1

    def finished(self, flow: Flow, correction_ms: float, epoch: int) -> None:
        flow.running -= 1
        self.running -= 1
        before = flow.tag
        flow.correct(correction_ms, epoch)
        if flow.tag < before:
            self._reenter(flow)
        self.settle(flow)

    def settle(self, flow: Flow) -> None:
        """Forget the flow if it is idle, now or when virtual time has passed its tag."""
        if self.size == 0 and self.running == 0:
            self._rest()
        elif flow.idle:
            heappush(self._idle, (flow.tag, flow.serial, flow))
            self._forget()

    def _forget(self) -> None:
        while self._idle and (self._idle[0][0] <= self.virtual or len(self._idle) > IDLE_MAX):
            tag, serial, flow = heappop(self._idle)
            if not flow.idle or self.flows.get(flow.tenant) is not flow:
                continue
            if flow.tag > max(tag, self.virtual):
                heappush(self._idle, (flow.tag, serial, flow))
            else:
                self._drop(flow)

    def _rest(self) -> None:
        """Nothing waits or runs: everybody starts even."""
        self._idle.clear()
        for flow in list(self.flows.values()):
            self.virtual = max(self.virtual, flow.tag)
            self._drop(flow)

    def _drop(self, flow: Flow) -> None:
        del self.flows[flow.tenant]
        self._forgotten(flow)

    # throttling

    def throttle(self, flow: Flow) -> None:
        flow.throttled = True
        flow.last_ms = -1
        self.active -= 1
        for line in flow.lines.values():
            line.stamp = None

    def wake(self, flow: Flow) -> None:
        """Look at it again, without credit for the time it was throttled."""
        if not flow.throttled:
            return
        self._stop_waiting(flow)
        self._activate(flow)
        self._reenter(flow)
        if self.watched:
            for line in flow.lines.values():
                self.contests[line.key].watch(line)

    def _activate(self, flow: Flow) -> None:
        """It competes from now on, and its class with it: neither earns anything by having been away."""
        if self.active == 0:
            self.join(self._root.virtual)
        self.active += 1
        flow.join(self.virtual)

    def _stop_waiting(self, flow: Flow) -> None:
        flow.throttled = False
        flow.wake_ms = 0
        if flow in flow.use.waiting:
            flow.use.waiting.remove(flow)

    def _reenter(self, flow: Flow) -> None:
        if not flow.throttled:
            for line in flow.lines.values():
                self.contests[line.key].enter(line, flow)

    # another policy

    def reorder(self, *, edf: bool, by_age: bool) -> None:
        """Every line anew, if the order changed. O(n log n), once per change of the pool's specification."""
        if by_age != (self.by_age is not None):
            self.by_age = Line() if by_age else None
            if self.by_age is not None:
                for job in self.jobs():
                    if job.order[0] != 0:
                        self.by_age.add(entry_of(job, edf=False))
        if edf == self.edf:
            return
        self.edf = edf
        for flow in self.flows.values():
            for line in flow.lines.values():
                line.rebuild(edf=edf)
                if self.watched and not flow.throttled:
                    self.contests[line.key].watch(line)

    def jobs(self) -> list[Job]:
        return [job for flow in self.flows.values() for line in flow.lines.values() for job in line.jobs()]


def _key(flow: Flow) -> tuple[float, int]:
    return (flow.tag, flow.serial)


def _latest(job: Job) -> tuple[float, tuple[int, int]]:
    return (job.due_ms - job.cost_ms, job.order)
