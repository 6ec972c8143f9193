"""What is written down while a simulation runs, as compactly as numbers can be; what it means is `result`'s to say."""

from array import array
from collections import Counter
from typing import Final

from llorch_scheduler.simulator.tasks import SimTask
from llorch_shared.wire.task import Priority

SAMPLES_MAX: Final = 2_048
SAMPLE_MS: Final = 1_000.0


class Gauge:
    """A value over time, and its integral."""

    __slots__ = ("_since_ms", "_sum", "peak", "value")

    def __init__(self) -> None:
        self.value = 0
        self.peak = 0
        self._sum = 0.0
        self._since_ms = 0.0

    def add(self, change: int, at_ms: float) -> None:
        self._sum += self.value * (at_ms - self._since_ms)
        self._since_ms = at_ms
        self.value += change
        self.peak = max(self.peak, self.value)

    def integral(self, at_ms: float) -> float:
        """Value times milliseconds up to now."""
        return self._sum + self.value * (at_ms - self._since_ms)


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


class Measurement:
    """Counters and samples of one run. Only what happened; nothing is derived here."""

    def __init__(self, pools: list[str], priorities: tuple[Priority, ...]) -> None:
        self.waits: Final[dict[tuple[str, Priority], Waits]] = {}
        self.outcomes: Final[Counter[tuple[str, Priority, str]]] = Counter()
        """By tenant, class and how it ended; `arrived` counts all."""
        self.refusals: Final[Counter[tuple[str, Priority, str]]] = Counter()
        """By pool, class and reason. One task may be refused several times."""
        self.requeues: Final[Counter[str]] = Counter()
        self.tokens_out: Final[Counter[tuple[str, Priority, str]]] = Counter()
        """By tenant, class and pool, of tasks that are done."""
        self.returned = 0
        """Tries made after a refusal, when the client was told to."""
        self.returned_admitted = 0
        self.busy: Final = {pool: Gauge() for pool in pools}
        self.ready: Final = {pool: Gauge() for pool in pools}
        self.depth: Final = {(pool, priority): Gauge() for pool in pools for priority in priorities}
        self.sample_ms = SAMPLE_MS
        self.samples: Final[list[tuple[float, ...]]] = []
        """Time, then the integrals of `busy`, `ready` and `depth` and the number of refusals, in this order."""

    def started(self, task: SimTask, at_ms: float) -> None:
        waits = self.waits.setdefault((task.tenant, task.priority), Waits())
        waits.started_ms.append(at_ms)
        waits.waited_ms.append(at_ms - task.admitted_ms)
        waits.since_arrival_ms.append(at_ms - task.arrived_ms)
        waits.told_ms.append(task.told_ms)

    def ended(self, task: SimTask, outcome: str) -> None:
        self.outcomes[task.tenant, task.priority, outcome] += 1
        if outcome == "done":
            self.tokens_out[task.tenant, task.priority, task.flow.pool_id] += task.output

    def sample(self, at_ms: float) -> None:
        """Remember where everything stands. Beyond `SAMPLES_MAX` every second sample goes, and the pace halves."""
        gauges = [*self.busy.values(), *self.ready.values(), *self.depth.values()]
        self.samples.append((at_ms, *(gauge.integral(at_ms) for gauge in gauges), float(self.refusals.total())))
        if len(self.samples) > SAMPLES_MAX:
            del self.samples[1::2]
            self.sample_ms *= 2
