"""Who used how many slots, and who wanted how many, in windows of time: what fairness is judged by.

A task wants one slot from its admission to its end and uses one while an engine has it. The time averages of both say
all there is to say about a window, whatever the tasks' lengths: `fairness` derives from them what would have been
fair.
"""

from typing import Final, NamedTuple

from llorch_scheduler.simulator.gauge import FlowUse
from llorch_scheduler.simulator.tasks import SimTask
from llorch_shared.wire.task import Priority

WINDOW_MS: Final = 10_000.0
WINDOWS_MAX: Final = 360
"""Beyond it, windows are joined in pairs and twice as long from then on."""


class Key(NamedTuple):
    """One tenant's tasks of one class in one pool."""

    pool_id: str
    tenant: str
    priority: Priority


class Use(NamedTuple):
    """Slots used and wanted in one window, times milliseconds."""

    used: float
    wanted: float


class Window(NamedTuple):
    begin_ms: float
    end_ms: float
    uses: dict[Key, Use]


class Shares:
    def __init__(self) -> None:
        self.windows: list[Window] = []
        self.flows: Final[dict[tuple[str, str, Priority], FlowUse]] = {}
        """By `Key`."""
        self._begin_ms = 0.0
        self._width_ms = WINDOW_MS

    def came(self, task: SimTask, at_ms: float) -> None:
        """Admitted: from here on the task knows where its use of slots is counted."""
        pool_id = task.flow.pool_id
        flow = self.flows.get((pool_id, task.tenant, task.priority))
        if flow is None:
            flow = self.flows[Key(pool_id, task.tenant, task.priority)] = FlowUse()
        task.use = flow
        flow.wanted.add(1, at_ms)

    def cut(self, at_ms: float) -> None:
        """End the present window if it is long enough. O(flows) when it is."""
        if at_ms - self._begin_ms < self._width_ms:
            return
        uses: dict[Key, Use] = {}
        for key, flow in self.flows.items():
            used, wanted = flow.used.integral(at_ms), flow.wanted.integral(at_ms)
            if wanted > flow.told_wanted:
                uses[Key(*key)] = Use(used - flow.told_used, wanted - flow.told_wanted)
            flow.told_used, flow.told_wanted = used, wanted
        self.windows.append(Window(self._begin_ms, at_ms, uses))
        self._begin_ms = at_ms
        if len(self.windows) > WINDOWS_MAX:
            pairs = zip(self.windows[::2], [*self.windows[1::2], None], strict=False)
            self.windows = [joined([first, second]) if second else first for first, second in pairs]
            self._width_ms *= 2


def joined(windows: list[Window]) -> Window:
    """Neighbouring windows as one."""
    uses: dict[Key, Use] = {}
    for window in windows:
        for key, use in window.uses.items():
            before = uses.get(key, Use(0.0, 0.0))
            uses[key] = Use(before.used + use.used, before.wanted + use.wanted)
    return Window(windows[0].begin_ms, windows[-1].end_ms, uses)
