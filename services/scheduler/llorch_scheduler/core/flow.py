"""One tenant in one class, and the start tags by which flows and classes take turns.

Start-time fair queueing: a member's tag is the virtual time at which its next start is due. Who has the least tag goes
next, and its tag grows by cost / weight. The virtual time of a group is the greatest tag that was served; who joins
with an older tag starts there, so idleness earns nothing.
"""

from typing import TYPE_CHECKING, Final

from llorch_scheduler.core.line import Line
from llorch_scheduler.core.quota import TenantUse
from llorch_scheduler.core.shape import Shape
from llorch_scheduler.core.shares import Share
from llorch_shared.wire.task import Priority

if TYPE_CHECKING:
    from llorch_scheduler.core.contest import Contest

_PACE_ALPHA: Final = 0.2
"""The last ten starts carry 89 % of the measured pace."""


class Tagged:
    """A member of a group that shares by weight."""

    __slots__ = ("_lift", "epoch", "tag", "weight")

    def __init__(self, weight: int, tag: float) -> None:
        self.weight = weight
        self.tag = tag
        self.epoch = 0
        """Counts how often idleness was forgiven: corrections of what was charged before do not undo it."""
        self._lift = 0.0

    def join(self, virtual: float) -> None:
        """From now on it competes: not with an older tag than the others."""
        if self.tag < virtual:
            self._lift = virtual - self.tag
            self.tag = virtual
            self.epoch += 1

    def charge(self, cost_ms: float) -> None:
        self.tag += cost_ms / self.weight

    def correct(self, cost_ms: float, epoch: int) -> None:
        """It used more (or, negative, less) than it was charged in `epoch`.

        Had the true cost been known, the lift since then would have been smaller or larger by it: only what exceeds
        the lift moves the tag.
        """
        more = cost_ms / self.weight
        if epoch != self.epoch:
            beyond = more - self._lift
            self._lift, more = (0.0, beyond) if beyond > 0.0 else (-beyond, 0.0)
        self.tag += more


class Root:
    """The virtual time that the classes of a pool share."""

    __slots__ = ("virtual",)

    def __init__(self) -> None:
        self.virtual = 0.0


class Flow(Tagged):
    """`lines` are its waiting tasks by shape; a flow that is `throttled` stands in no contest."""

    __slots__ = (
        "fresh",
        "last_ms",
        "lines",
        "listed_idle",
        "only",
        "pace_ms",
        "priority",
        "queued",
        "running",
        "serial",
        "share",
        "tenant",
        "throttled",
        "use",
        "wake_ms",
    )

    def __init__(
        self, tenant: str, priority: Priority, use: TenantUse, share: Share, *, tag: float, serial: int
    ) -> None:
        super().__init__(use.limits.weight, tag)
        self.tenant: Final = tenant
        self.priority: Final = priority
        self.use: Final = use
        self.share: Final = share
        self.serial: Final = serial
        self.lines: dict[Shape | None, Line] = {}
        """None: the line of mixed shapes."""
        self.only: Line | None = None
        """Its line, if it has just one: as a rule."""
        self.queued = 0
        self.fresh = 0
        """Of these: new ones, that still take a place of the admission queue."""
        self.running = 0
        self.throttled = False
        self.wake_ms = 0
        """When a throttled flow is looked at again."""
        self.listed_idle = False
        self.last_ms = -1
        """When it last started a task while others waited; negative when none did."""
        self.pace_ms = 0.0

    def open_line(self, contest: "Contest", serial: int) -> Line:
        line = self.lines[contest.shape] = Line(self, contest, serial)
        contest.lines += 1
        self.only = line if len(self.lines) == 1 else None
        return line

    def close_line(self, line: Line) -> None:
        line.stamp = None
        line.contest.lines -= 1
        del self.lines[line.contest.shape]
        self.only = next(iter(self.lines.values())) if len(self.lines) == 1 else None

    @property
    def work_ms(self) -> float:
        only = self.only
        return only.work_ms if only is not None else sum(line.work_ms for line in self.lines.values())

    @property
    def idle(self) -> bool:
        return self.queued == 0 and self.running == 0

    def stop_waiting(self) -> None:
        """It is not throttled any more, or has nothing left to wait with."""
        if self.throttled:
            self.throttled = False
            self.wake_ms = 0
            if self in self.use.waiting:
                self.use.waiting.remove(self)
        if self.queued == 0:
            self.last_ms = -1

    def measure(self, at_ms: int) -> None:
        """It starts a task: how long since the one before, if it had to wait since then."""
        if self.last_ms >= 0:
            sample_ms = float(at_ms - self.last_ms)
            self.pace_ms += (sample_ms - self.pace_ms) * _PACE_ALPHA if self.pace_ms else sample_ms
        self.last_ms = at_ms
