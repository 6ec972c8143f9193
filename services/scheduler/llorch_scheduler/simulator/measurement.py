"""What is written down while a simulation runs, as compactly as numbers can be; what it means is `summary`'s to say."""

from array import array
from collections import Counter
from typing import Final

from llorch_scheduler.simulator.gauge import Gauge
from llorch_scheduler.simulator.shares import Shares
from llorch_scheduler.simulator.tasks import SimTask
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.task import Priority

SAMPLES_MAX: Final = 2_048
SAMPLE_MS: Final = 1_000.0
DECILES: Final = 10


class Waits:
    """Tasks of one tenant and class that started: when, and after how long. Milliseconds."""

    __slots__ = ("since_arrival_ms", "started_ms", "told_ms", "waited_ms")

    def __init__(self) -> None:
        self.started_ms: Final = array("d")
        self.waited_ms: Final = array("d")
        """From admission to the engine."""
        self.since_arrival_ms: Final = array("d")
        """From the first try to the engine, refusals included."""
        self.told_ms: Final = array("d")
        """What its admission was answered with."""


class Ends:
    """Admitted tasks of one class that ended: when, and whether within their deadline."""

    __slots__ = ("at_ms", "met")

    def __init__(self) -> None:
        self.at_ms: Final = array("d")
        self.met: Final = array("b")


class Chances:
    """Told chances to be on time, by tenths, and how many were."""

    __slots__ = ("met", "number", "told")

    def __init__(self) -> None:
        self.number: Final = [0] * DECILES
        self.told: Final = [0.0] * DECILES
        self.met: Final = [0] * DECILES

    def add(self, told: float, *, met: bool) -> None:
        tenth = int(told * DECILES) if told < 1.0 else DECILES - 1
        self.number[tenth] += 1
        self.told[tenth] += told
        self.met[tenth] += met


class Measurement:
    """Counters and samples of one run. Only what happened; nothing is derived here."""

    def __init__(self, pools: list[str], priorities: tuple[Priority, ...]) -> None:
        self.waits: Final[dict[tuple[str, Priority], Waits]] = {}
        self.outcomes: Final[Counter[tuple[str, Priority, str]]] = Counter()
        """By tenant, class and how it ended; `arrived` counts all."""
        self.refusals: Final[Counter[tuple[str, Priority, str]]] = Counter()
        """By pool, class and reason. One task may be refused several times."""
        self.sent_away: Final[Counter[tuple[str, Priority]]] = Counter()
        """Tasks that were refused at least once, by tenant and class."""
        self.requeues: Final[Counter[str]] = Counter()
        self.tokens_out: Final[Counter[tuple[str, Priority, str]]] = Counter()
        """By tenant, class and pool, of tasks that are done."""
        self.returned = 0
        """Tries made after a refusal, when the client was told to."""
        self.returned_admitted = 0
        self.promised = 0
        """Those of them whose refusal had promised a place."""
        self.promised_admitted = 0
        self.preempted: Final[Counter[tuple[str, Priority]]] = Counter()
        """Attempts that were stopped for more urgent work."""
        self.due: Final[Counter[tuple[str, Priority]]] = Counter()
        """Admitted tasks that ended …"""
        self.met: Final[Counter[tuple[str, Priority]]] = Counter()
        """… and were done within their deadline."""
        self.ends: Final = {priority: Ends() for priority in priorities}
        self.told_at_admission: Final = Chances()
        self.told_at_placement: Final = Chances()
        self.versions: Final[Counter[tuple[str, str]]] = Counter()
        """Starts by pool and engine version."""
        self.busy: Final = {pool: Gauge() for pool in pools}
        self.ready: Final = {pool: Gauge() for pool in pools}
        self.depth: Final = {(pool, priority): Gauge() for pool in pools for priority in priorities}
        self.shares: Final = Shares()
        self.sample_ms = SAMPLE_MS
        self.samples: Final[list[tuple[float, ...]]] = []
        """Time, then the integrals of `busy`, `ready` and `depth` and the number of refusals, in this order."""

    def admitted(self, task: SimTask, at_ms: float) -> None:
        if task.refusals:
            self.returned += 1
            self.returned_admitted += 1
            self.promised += task.promised
            self.promised_admitted += task.promised
        self.depth[task.flow.pool_id, task.priority].add(1, at_ms)
        self.shares.came(task, at_ms)

    def refused(self, task: SimTask, reason: str) -> None:
        """`task.promised` is still what the refusal before this one said."""
        self.refusals[task.flow.pool_id, task.priority, reason] += 1
        if task.refusals == 1:
            self.sent_away[task.tenant, task.priority] += 1
        else:
            self.returned += 1
            self.promised += task.promised

    def started(self, task: SimTask, record: RunRecord, version: str, at_ms: float) -> None:
        """An attempt begins. Only the first one ends the task's wait."""
        pool_id = task.flow.pool_id
        self.busy[pool_id].add(1, at_ms)
        task.use.used.add(1, at_ms)
        self.versions[pool_id, version] += 1
        task.on_time_placed = record.on_time_probability
        if task.started_ms >= 0:
            return
        waits = self.waits.get((task.tenant, task.priority))
        if waits is None:
            waits = self.waits[task.tenant, task.priority] = Waits()
        waits.started_ms.append(at_ms)
        waits.waited_ms.append(at_ms - task.admitted_ms)
        waits.since_arrival_ms.append(at_ms - task.arrived_ms)
        waits.told_ms.append(task.told_ms)

    def left(self, task: SimTask, at_ms: float) -> None:
        """Its slot is free again, for whatever reason."""
        self.busy[task.flow.pool_id].add(-1, at_ms)
        task.use.used.add(-1, at_ms)

    def ended(self, task: SimTask, outcome: str, at_ms: float) -> None:
        done, priority, use = outcome == "done", task.priority, task.use
        if done:
            use.done += 1
            use.tokens_out += task.output
        else:
            self.outcomes[task.tenant, priority, outcome] += 1
            if task.admitted_ms < 0:
                return
        use.wanted.add(-1, at_ms)
        if outcome == "cancelled":
            return
        met = done and at_ms <= task.admitted_ms + task.deadline_ms
        use.due += 1
        use.met += met
        ends = self.ends[priority]
        ends.at_ms.append(at_ms)
        ends.met.append(met)
        if task.on_time_told is not None:
            self.told_at_admission.add(task.on_time_told, met=met)
        if task.on_time_placed is not None:
            self.told_at_placement.add(task.on_time_placed, met=met)

    def close(self) -> None:
        """The run is over. What was counted per flow is counted per tenant from here on."""
        for (pool_id, tenant, priority), use in self.shares.flows.items():
            self.outcomes[tenant, priority, "done"] += use.done
            self.tokens_out[tenant, priority, pool_id] += use.tokens_out
            self.due[tenant, priority] += use.due
            self.met[tenant, priority] += use.met

    def sample(self, at_ms: float) -> None:
        """Remember where everything stands. Beyond `SAMPLES_MAX` every second sample goes, and the pace halves."""
        gauges = [*self.busy.values(), *self.ready.values(), *self.depth.values()]
        self.samples.append((at_ms, *(gauge.integral(at_ms) for gauge in gauges), float(self.refusals.total())))
        if len(self.samples) > SAMPLES_MAX:
            del self.samples[1::2]
            self.sample_ms *= 2
        self.shares.cut(at_ms)
