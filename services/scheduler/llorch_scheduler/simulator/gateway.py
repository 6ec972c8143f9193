"""The gateway as clients meet it: what it admits, what it refuses and with which time to come back, what it tells.

The steps and their order are those of the live one: a pool that nobody serves, the circuit breaker, the deadline,
places that are promised, then the server's own count. It knows the pool by the scheduler's last load report only, and
derives from it what the live one derives, by the same shared code. A client that is told to come back waits as told and
tries again, unless that would outlast its patience.
"""

from typing import Final, Protocol

from llorch_scheduler.simulator.admission import request_of
from llorch_scheduler.simulator.bus import AdmissionQueue
from llorch_scheduler.simulator.clock import Clock
from llorch_scheduler.simulator.tasks import SimTask
from llorch_shared.queueing import NO_WAIT, Waiting
from llorch_shared.waiting import RETRY_MIN_MS, Outlook, chance, is_promised, retry_after_ms
from llorch_shared.wire.registry import Appointment, AppointmentRequest, PoolLoad
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Priority, TaskRequest

REFUSALS_MAX: Final = 2
"""After the first refusal the scheduler may have seen a place that has just come free; it is believed once."""


class Outside(Protocol):
    """Where admitted tasks go, who gives appointments, and who keeps count."""

    def refused(self, task: SimTask, reason: str) -> None: ...

    def gave_up(self, task: SimTask) -> None: ...

    def infeasible(self, task: SimTask) -> None: ...

    def admitted(self, task: SimTask, request: TaskRequest, queue: AdmissionQueue, seq: int) -> None: ...

    def appoint(self, request: AppointmentRequest) -> Appointment: ...

    def load(self, pool_id: str) -> PoolLoad | None: ...

    def spec(self, pool_id: str) -> PoolSpec: ...

    def served(self, pool_id: str) -> bool: ...


class Report:
    """One load report, and what newcomers were told by it: equal ones are told the same."""

    __slots__ = ("_chances", "_outlooks", "load")

    def __init__(self, load: PoolLoad | None) -> None:
        self.load: Final = load
        self._outlooks: Final[dict[tuple[str, Priority], Outlook]] = {}
        self._chances: Final[dict[tuple[str, Priority, int, int], float | None]] = {}

    def expect(self, task: SimTask, seq: int | None = None) -> Waiting:
        if self.load is None:
            return NO_WAIT
        flow = (task.tenant, task.priority)
        outlook = self._outlooks.get(flow)
        if outlook is None:
            outlook = self._outlooks[flow] = Outlook(self.load, task.priority, task.tenant)
        return outlook.expect(seq, due_in_ms=task.deadline_ms)

    def chance(self, task: SimTask, spec: PoolSpec) -> float | None:
        """To end before its deadline; None while nothing is known of the pool's slot times."""
        equal = (task.tenant, task.priority, task.max_tokens, task.deadline_ms)
        if equal not in self._chances:
            start_ms = self.expect(task).start_ms
            self._chances[equal] = chance(self.load, request_of(task, spec), task.tenant, start_ms=start_ms)
        return self._chances[equal]


class Gateway:
    """`queues` is by pool and class."""

    def __init__(self, clock: Clock, queues: dict[tuple[str, Priority], AdmissionQueue], outside: Outside) -> None:
        self._clock: Final = clock
        self._queues: Final = queues
        self._outside: Final = outside
        self._reports: Final[dict[str, Report]] = {}
        """The last one of each pool."""

    def submit(self, task: SimTask) -> None:
        """Admit it, end it, or send its client away for a while."""
        pool_id = task.flow.pool_id
        load = self._outside.load(pool_id)
        line = load.classes.get(task.priority) if load is not None else None
        if not self._outside.served(pool_id):
            self._refuse(task, "pool_unready", RETRY_MIN_MS)
        elif line is not None and line.shed:
            self._refuse(task, "circuit_breaker", max(RETRY_MIN_MS, line.shed_for_ms))
        else:
            spec = self._outside.spec(pool_id)
            report = self._report(pool_id, load)
            told = task.on_time_told = report.chance(task, spec)
            if told is None or told >= spec.deadlines.min_on_time_probability:
                self._enqueue(task, request_of(task, spec), report)
            else:
                self._outside.infeasible(task)

    def _report(self, pool_id: str, load: PoolLoad | None) -> Report:
        report = self._reports.get(pool_id)
        if report is None or report.load is not load:
            report = self._reports[pool_id] = Report(load)
        return report

    def _enqueue(self, task: SimTask, request: TaskRequest, report: Report) -> None:
        load = report.load
        queue = self._queues[task.flow.pool_id, task.priority]
        if is_promised(load, task.priority, task.tenant):
            appointment = self._ask(task)
            if not appointment.admit:
                self._send_away(task, "promised", appointment, load)
                return
        for refusals in range(1, REFUSALS_MAX + 1):
            if queue.tenant_full(task.tenant):
                self._send_away(task, "tenant_full", self._ask(task, tenant_refused=True), load)
                return
            seq = queue.publish(task.tenant)
            if seq:
                self._admit(task, request, queue, seq, report)
                return
            appointment = self._ask(task, refused=True)
            if not appointment.admit or refusals == REFUSALS_MAX:
                self._send_away(task, "queue_full", appointment, load)
                return

    def _admit(self, task: SimTask, request: TaskRequest, queue: AdmissionQueue, seq: int, report: Report) -> None:
        task.told_ms = round(report.expect(task, seq).start_ms)
        task.admitted_ms = self._clock.now_ms
        self._outside.admitted(task, request, queue, seq)

    def _ask(self, task: SimTask, *, refused: bool = False, tenant_refused: bool = False) -> Appointment:
        return self._outside.appoint(
            AppointmentRequest(
                task_id=task.task_id,
                pool_id=task.flow.pool_id,
                priority=task.priority,
                tenant=task.tenant,
                refused=refused,
                tenant_refused=tenant_refused,
            )
        )

    def _send_away(self, task: SimTask, reason: str, appointment: Appointment, load: PoolLoad | None) -> None:
        wait_ms = appointment.retry_after_ms if appointment.retry_after_ms > 0 else retry_after_ms(load)
        self._refuse(task, reason, wait_ms, promised=appointment.promised)

    def _refuse(self, task: SimTask, reason: str, wait_ms: int, *, promised: bool = False) -> None:
        task.refusals += 1
        self._outside.refused(task, reason)
        task.promised = promised
        wait_ms = max(RETRY_MIN_MS, wait_ms)
        if self._clock.now_ms + wait_ms > task.arrived_ms + 1000 * task.flow.patience_s:
            self._outside.gave_up(task)
        else:
            self._clock.after(wait_ms, self.submit, task)
