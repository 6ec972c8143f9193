"""Who may serve what in one pool: remembered by shape, and made anew when a replica changes its abilities or the
specification changes. What this costs does not depend on the number of replicas, and between changes it is O(1).
"""

from collections import Counter
from typing import Final, NamedTuple

from msgspec.structs import replace

from llorch_scheduler.core.index import PoolIndex
from llorch_scheduler.core.peers import Kind, Slots
from llorch_scheduler.core.placement import FILTERS, refusal, serves, shape_of
from llorch_scheduler.core.replica_sets import ReplicaSets, SetKey
from llorch_scheduler.core.shape import Shape
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import TaskRequest

_CTX_LIMITS_MAX: Final = 8
_VIEWS_MAX: Final = 1_024
"""Shapes whose kinds are remembered; clients choose device masks."""


class View(NamedTuple):
    """Who may serve a shape."""

    kinds: tuple[Kind, ...]
    removed: tuple[tuple[str, int], ...]
    """Ready replicas that did not pass, by filter."""
    replica_set: str


class Feasibility:
    def __init__(self, index: PoolIndex) -> None:
        self.sets: Final = ReplicaSets()
        self.spec: PoolSpec | None = None
        self._index: Final = index
        self._shapes_version = 0
        self._ctx_limits: tuple[int, ...] = ()
        self._views: Final[dict[Shape, View]] = {}
        self._slots = Slots()
        self._seen = -1

    def configure(self, spec: PoolSpec | None) -> None:
        before, self.spec = self.spec, spec
        self._seen = -1
        if spec is None or before is None or (spec.canary, spec.ctx) != (before.canary, before.ctx):
            self._shapes_version += 1
            self._ctx_limits = ()

    def shapes_version(self) -> int:
        """Changes when `shape_of` may answer otherwise than before: the shapes of waiting tasks are to be made again.
        Until then they are at worst narrower than they need be."""
        if self._seen != self._index.version:
            self._refresh()
        return self._shapes_version

    def shape_of(self, request: TaskRequest) -> Shape:
        """For a pool that is wanted."""
        assert self.spec is not None
        if self._seen != self._index.version:
            self._refresh()
        return shape_of(request, self.spec, self._ctx_limits)

    def slots(self) -> Slots:
        """Of the replicas that tasks can go to, as they are until the next change: those of a version that gets none,
        for example, are not counted. O(1)."""
        if self._seen != self._index.version:
            self._refresh()
        return self._slots

    def view(self, shape: Shape) -> View:
        if self._seen != self._index.version:
            self._refresh()
        view = self._views.get(shape)
        if view is None:
            if len(self._views) >= _VIEWS_MAX:
                self._views.clear()
            view = self._views[shape] = self._look(shape)
        return view

    def _refresh(self) -> None:
        """Made anew what depends on the replicas' abilities, which have changed."""
        self._seen = self._index.version
        self._views.clear()
        kinds = self._index.kinds
        self._slots = slots = Slots()
        for kind in kinds.values():
            kind.slots = None
        if self.spec is None:
            return
        ready: Counter[SetKey] = Counter()
        for abilities, kind in kinds.items():
            ready[abilities.version] += kind.size
        self.sets.choose(ready, self._index.returning, self.spec)
        for abilities, kind in kinds.items():
            if serves(abilities, self.spec, self.sets):
                kind.slots = slots
                slots.total, slots.free = slots.total + kind.slots_total, slots.free + kind.slots_free
                slots.replicas += kind.size
        limits = {key.ctx_max for key in ready if 0 < key.ctx_max < self.spec.ctx}
        if not limits <= set(self._ctx_limits):
            self._ctx_limits = tuple(sorted(limits.union(self._ctx_limits))[-_CTX_LIMITS_MAX:])
            self._shapes_version += 1

    def _look(self, shape: Shape) -> View:
        if self.spec is None:
            return View((), (), "")
        removed: Counter[str] = Counter()
        kinds: list[Kind] = []
        for abilities, kind in self._index.kinds.items():
            name = refusal(abilities, shape, self.spec, self.sets)
            if name:
                removed[name] += kind.size
            else:
                kinds.append(kind)
        if shape.determinism_class and not kinds:
            return self.view(replace(shape, determinism_class=""))
        counts = tuple((name, removed[name]) for name in FILTERS if removed[name])
        return View(tuple(kinds), counts, self.sets.name(shape.side, self.spec))
