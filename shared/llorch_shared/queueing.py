"""How long a task waits behind what stands before it: one formula, used by the gateway for its answer and by the
scheduler for its record. Pure.

Tasks that start before it (the position): n of its own flow, and of the others what fair queueing serves meanwhile.
With earliest deadline first, later tasks overtake: of what a flow starts while a task of it waits, the part `overtaken`
was admitted after it, as measured lately in its class. Shares are of slot time, so with c, c' the mean expected slot
time of a task of its class and of the other classes,

    n        = tasks of its flow that are served before it / (1 - overtaken)
    position = own + others,   own    = n + min(C - n, n · (Σw - w) / w)         flows of its class, weights w
                               others = min(O, own · c/c' · v / w_class)        classes, v the weight of the others

Then, with s slots and the measured `turn`, the slot time between two starts of the pool,

    gap   = turn / s                                   mean time between two starts
    start = 0                                          while position < slots_free
          = n · pace + (gap + pace) / 2                if the flow's own pace is known: it already holds its share
          = (position + 1) · gap                       otherwise

While nothing is ready, the time until something is comes first, and its slots count as free then. Until a first task
has ended the bootstrap of REQUIREMENTS section 7 holds: position · 100 ms.
"""

from typing import Final

import msgspec

BOOTSTRAP_MS: Final = 100
OVERTAKEN_MAX: Final = 0.9
"""A task that is overtaken for ever would have no forecast."""


class Waiting(msgspec.Struct, frozen=True, gc=False):
    position: int
    """Tasks that start before it."""
    start_ms: float
    """Until it starts."""
    measured: bool
    """Forecast from measurements: by the bootstrap rule, or with nothing in its way, there is nothing to compare."""


class Ahead(msgspec.Struct, frozen=True, gc=False):
    """What stands before a task in the queue. Work is expected slot time, milliseconds. Sums are without the task
    itself; weights count its flow and class."""

    flow_tasks: int
    """Tasks of its own flow (tenant and class) that are served before it."""
    flow_weight: int
    flows_weight: int
    """Sum of the weights of the flows of its class that wait, its own included."""
    class_tasks: int
    """All tasks that wait in its class …"""
    class_work_ms: float
    """… and their work."""
    class_weight: int
    other_tasks: int
    """All tasks that wait in other classes …"""
    other_work_ms: float
    """… and their work."""
    other_weight: int
    """Sum of the weights of the other classes in which tasks wait."""


class Pace(msgspec.Struct, frozen=True, gc=False):
    """How fast the pool works."""

    slots_total: int
    slots_free: int
    turn_ms: float
    """Slot time between two starts; 0 while unknown."""
    flow_pace_ms: float = 0.0
    loading_ms: int = 0
    loading_slots: int = 0
    overtaken: float = 0.0
    """Part of what a flow of the class starts that was admitted later than a task that waits meanwhile."""

    @property
    def gap_ms(self) -> float:
        """Mean time between two starts; 0 while unknown."""
        slots = self.slots_total or self.loading_slots
        return self.turn_ms / slots if slots else 0.0


NO_WAIT: Final = Waiting(0, 0.0, measured=False)
"""A free slot, and nothing of its own flow before it."""
NOBODY: Final = Ahead(0, 1, 1, 0, 0.0, 1, 0, 0.0, 0)
"""Nothing of its own flow stands before it. Fair queueing lets nothing else go first then."""


def foresee(ahead: Ahead, pace: Pace) -> Waiting:
    """The formula."""
    tasks = position = 0.0
    if not ahead.flow_tasks:
        if pace.slots_free > 0 and pace.slots_total > 0:
            return NO_WAIT
    else:
        overtaken = pace.overtaken if pace.overtaken < OVERTAKEN_MAX else OVERTAKEN_MAX
        tasks = ahead.flow_tasks / (1 - overtaken)
        position = _position(ahead, tasks)
    loading_ms, free = 0.0, pace.slots_free
    if pace.slots_total <= 0:
        loading_ms, free = float(pace.loading_ms), pace.loading_slots
    if position < free:
        return Waiting(int(position), loading_ms, measured=False)
    slots = pace.slots_total or pace.loading_slots
    gap_ms = pace.turn_ms / slots if slots else 0.0
    if gap_ms <= 0:
        return Waiting(int(position), loading_ms + (position - free + 1) * BOOTSTRAP_MS, measured=False)
    if pace.flow_pace_ms > 0:
        start_ms = tasks * pace.flow_pace_ms + (gap_ms + pace.flow_pace_ms) / 2
    else:
        start_ms = (position + 1) * gap_ms
    start_ms -= free * gap_ms
    return Waiting(int(position), loading_ms + start_ms if start_ms > 0 else loading_ms, measured=loading_ms == 0)


def _position(ahead: Ahead, tasks: float) -> float:
    """`tasks`: of its flow that start before it. Comparisons stand here instead of `min` and `max`: this is worked out
    for every task, and those take ten times as long."""
    rivals = ahead.flows_weight - ahead.flow_weight
    class_rest = ahead.class_tasks - ahead.flow_tasks
    own = tasks
    if rivals > 0 and class_rest > 0:
        served = tasks * rivals / (ahead.flow_weight or 1)
        own += served if served < class_rest else class_rest
    if not ahead.other_tasks:
        return own
    cost_ms = ahead.class_work_ms / ahead.class_tasks if ahead.class_tasks else 0.0
    other_cost_ms = ahead.other_work_ms / ahead.other_tasks
    ratio = cost_ms / other_cost_ms if cost_ms > 0 and other_cost_ms > 0 else 1.0
    served = own * ratio * ahead.other_weight / (ahead.class_weight or 1)
    return own + (served if served < ahead.other_tasks else ahead.other_tasks)
