"""One class of a pool: its flows (one per tenant) take turns by weight; inside a flow the line decides.

A flow that is over a quota is throttled: it leaves every contest until the quota allows its next task, and holds up
nobody else. Flows that neither wait nor run are forgotten once virtual time has passed their tag, so memory follows
what is there and not what has ever been.

Not here: whose turn it is (`turn`, `queue`), quotas themselves (`quota`), places in a full queue (`full_queue`).
"""

from collections.abc import Callable
from typing import Final

from llorch_scheduler.core.contest import SHAPES_MAX, Contest
from llorch_scheduler.core.flow import Flow, Root, Tagged
from llorch_scheduler.core.idle import IdleFlows
from llorch_scheduler.core.job import Job
from llorch_scheduler.core.line import JobList, Line, entry_of
from llorch_scheduler.core.quota import Meter, TenantUse
from llorch_scheduler.core.shape import Shape
from llorch_scheduler.core.shares import Share
from llorch_shared.wire.task import Priority


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
        self.contests: dict[Shape | None, Contest] = {}
        self.by_age: JobList | None = None
        """Its new tasks in order of admission; None unless a full policy asks for it."""
        self._idle: Final = IdleFlows(self._forget)
        self._serial = 0
        self._forgotten: Final = forgotten

    def __len__(self) -> int:
        return self.size

    # what waits

    def open(self, tenant: str, use: TenantUse, share: Share) -> Flow:
        """A flow for a tenant that has none here."""
        self._serial += 1
        flow = Flow(tenant, self.priority, use, share, tag=self.virtual, serial=self._serial)
        self.flows[tenant] = flow
        return flow

    def add(self, job: Job, flow: Flow) -> None:
        line = flow.only
        if line is None or line.contest.shape != job.shape:
            line = self._line_of(job, flow)
        entry = entry_of(job, edf=self.edf)
        line.add(entry)
        if flow.queued == 0:
            self.flows_weight += flow.weight
            self._activate(flow)
        flow.queued += 1
        self.size += 1
        self.work_ms += entry[3]
        if job.order[0] != 0:
            flow.fresh += 1
            self.fresh += 1
            if self.by_age is not None:
                self.by_age.add(entry_of(job, edf=False))
        if flow.throttled:
            if line.head is job:
                self.wake(flow)
            return
        if line.stamp is None:
            line.contest.enter(line)
        if line.head is job and self.watched:
            line.contest.watch(line)

    def remove(self, job: Job, flow: Flow) -> bool:
        """Take it out of its line; false when it does not wait here."""
        line = flow.only if flow.only is not None else flow.lines.get(job.shape)
        cost_ms = line.remove(job, edf=self.edf) if line is not None else 0.0
        if cost_ms == 0.0:
            line = flow.lines.get(None)
            cost_ms = line.remove(job, edf=self.edf) if line is not None else 0.0
        if line is None or cost_ms == 0.0:
            return False
        flow.queued -= 1
        self.size -= 1
        self.work_ms = self.work_ms - cost_ms if self.size else 0.0
        if job.order[0] != 0:
            flow.fresh -= 1
            self.fresh -= 1
            if self.by_age is not None:
                self.by_age.remove(job, edf=False)
        if line.size == 0:
            flow.close_line(line)
            if line.contest.lines == 0:
                self.contests.pop(line.contest.shape).close()
        elif self.watched and not flow.throttled:
            line.contest.watch(line)
        if flow.queued == 0:
            self.flows_weight -= flow.weight
            if not flow.throttled:
                self.active -= 1
            flow.stop_waiting()
        return True

    def _line_of(self, job: Job, flow: Flow) -> Line:
        shape: Shape | None = job.shape
        if shape not in self.contests and len(self.contests) >= SHAPES_MAX:
            shape = None
        line = flow.lines.get(shape)
        if line is None:
            contest = self.contests.get(shape)
            if contest is None:
                contest = self.contests[shape] = Contest(shape)
            self._serial += 1
            line = flow.open_line(contest, self._serial)
        return line

    def jobs(self) -> list[Job]:
        return [job for line in self.lines() for job in line.jobs()]

    def lines(self) -> list[Line]:
        return [line for flow in self.flows.values() for line in flow.lines.values()]

    # turns taken

    def started(self, flow: Flow, cost_ms: float, *, found: bool = False) -> None:
        """The flow pays. `found`: it was started by another scheduler, so it was not its turn."""
        if flow.tag > self.virtual and not found:
            self.virtual = flow.tag
        flow.tag += cost_ms / flow.weight
        flow.running += 1
        self.running += 1
        if self._idle.first_tag <= self.virtual:
            self._idle.passed(self.virtual)

    def finished(self, flow: Flow, more_ms: float, epoch: int) -> None:
        """`more_ms`: real slot time less what was charged in `epoch`."""
        flow.running -= 1
        self.running -= 1
        before = flow.tag
        flow.correct(more_ms, epoch)
        if flow.queued == 0:
            self.settle(flow)
        elif flow.tag < before and not flow.throttled:
            for line in (flow.only,) if flow.only is not None else flow.lines.values():
                line.contest.enter(line)

    def settle(self, flow: Flow) -> None:
        """Forget the flow if it is idle, now or when virtual time has passed its tag."""
        if self.size == 0 and self.running == 0:
            self._rest()
        elif flow.idle:
            self._idle.add(flow, self.virtual)

    def _rest(self) -> None:
        """Nothing waits or runs: everybody starts even."""
        self._idle.clear()
        for flow in list(self.flows.values()):
            self.virtual = max(self.virtual, flow.tag)
            self._forget(flow)

    def _forget(self, flow: Flow) -> None:
        del self.flows[flow.tenant]
        self._forgotten(flow)

    # throttling

    def throttle(self, flow: Flow, opens_ms: int) -> None:
        flow.throttled, flow.wake_ms, flow.last_ms = True, opens_ms, -1
        self.active -= 1
        for line in flow.lines.values():
            line.stamp = None

    def wake(self, flow: Flow) -> None:
        """Look at it again, without credit for the time it was throttled."""
        if not flow.throttled:
            return
        flow.stop_waiting()
        self._activate(flow)
        for line in flow.lines.values():
            line.contest.enter(line)
            if self.watched:
                line.contest.watch(line)

    def _activate(self, flow: Flow) -> None:
        """It competes from now on, and its class with it: neither earns anything by having been away."""
        if self.active == 0:
            self.join(self._root.virtual)
        self.active += 1
        flow.join(self.virtual)
