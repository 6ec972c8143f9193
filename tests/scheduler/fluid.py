"""Generalised processor sharing: the ideal that no real server reaches, because it serves all flows at once.

Independent of the scheduler on purpose: no tags, no virtual time. Every member that has work left gets its weight's
part of what its group gets; the parts are constant until some flow runs dry.
"""

from collections import defaultdict
from collections.abc import Hashable

_NOTHING = 1e-9


class Fluid:
    """Flows in groups (tenants in classes); one group is plain sharing among flows."""

    def __init__(self, group_weights: dict[Hashable, int], weights: dict[tuple[Hashable, Hashable], int]) -> None:
        self.group_weights = group_weights
        self.weights = weights
        self.left: dict[tuple[Hashable, Hashable], float] = defaultdict(float)
        self.served: dict[tuple[Hashable, Hashable], float] = defaultdict(float)

    def arrive(self, flow: tuple[Hashable, Hashable], work: float) -> None:
        self.left[flow] += work

    def serve(self, work: float) -> None:
        """Spend that much work on whoever has some left."""
        while work > _NOTHING and (parts := self._parts()):
            spent = min(work, *(self.left[flow] / part for flow, part in parts.items()))
            for flow, part in parts.items():
                self.left[flow] = max(0.0, self.left[flow] - spent * part)
                if self.left[flow] <= _NOTHING:
                    self.left[flow] = 0.0
                self.served[flow] += spent * part
            work -= spent

    def _parts(self) -> dict[tuple[Hashable, Hashable], float]:
        busy = [flow for flow, left in self.left.items() if left > 0]
        groups = {flow[0] for flow in busy}
        all_groups = sum(self.group_weights[group] for group in groups)
        in_group = {group: sum(self.weights[flow] for flow in busy if flow[0] == group) for group in groups}
        return {
            flow: self.group_weights[flow[0]] / all_groups * self.weights[flow] / in_group[flow[0]] for flow in busy
        }
