"""Replica sets: a pool's tasks go to engines of one version, so that answers do not change from task to task
(OC-CORE-1031, ORCH-3046), but for a canary that takes a known part of them (ORCH-3033).

A set is every replica whose engine, model, quant, ctx, engine version, model digest and sampler profile are equal. The
stable set is chosen at the first decision: most ready replicas, then the highest version. It stays the stable one until
another has strictly more ready replicas than it has alive, ready or on their way back. So a crash of a moment moves
nobody, equal sets do not take turns, and in an upgrade node by node all tasks change over at once when most replicas
are new. Versions that the canary names are never chosen as stable. The canary set is chosen among the ready replicas of
its version. A side that has no replica left is served by the other one.

A rollback is one change: without `canary` the next decision goes to the stable set.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple
from zlib import crc32

from llorch_scheduler.core.shape import CANARY, STABLE
from llorch_shared.wire.registry import ReplicaRecord
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Engine, TaskRequest

_BUCKETS: Final = 10_000
"""A hundredth of a percent is the finest part that a canary takes."""


class SetKey(NamedTuple):
    """Replicas with equal keys give equal answers."""

    engine: Engine
    model_ref: str
    quant: str
    ctx_max: int
    engine_version: str
    model_digest: str
    sampler_profile_version: str

    def __str__(self) -> str:
        return f"{self.engine_version or 'unversioned'}/{self.sampler_profile_version}/{self.model_digest[:19] or '-'}"


def set_key(record: ReplicaRecord) -> SetKey:
    return SetKey(
        record.engine,
        record.model_ref,
        record.quant,
        record.ctx_max,
        record.engine_version,
        record.model_digest,
        record.sampler_profile_version,
    )


def side_of(request: TaskRequest, spec: PoolSpec) -> str:
    """Which set a task belongs to. By its session, so that a session stays on one side."""
    canary = spec.canary
    if canary is None:
        return STABLE
    if request.placement is not None and request.placement.label in canary.labels:
        return CANARY
    return CANARY if crc32(request.session_id.lower().encode()) % _BUCKETS < canary.percent * 100 else STABLE


class ReplicaSets:
    """Which set is stable and which is the canary's, at the moment."""

    def __init__(self) -> None:
        self.stable: SetKey | None = None
        self.canary: SetKey | None = None
        self._settled = False
        self._gone = True

    def settle(self) -> None:
        """A task was placed on either side: from now on the stable set stays while it can. So it is also the one that a
        canary is rolled back to."""
        self._settled = self.stable is not None

    def choose(self, ready: Mapping[SetKey, int], returning: Mapping[SetKey, int], spec: PoolSpec) -> None:
        """`ready`: how many replicas of each set take tasks; `returning`: how many soon will."""
        version = spec.canary.engine_version if spec.canary is not None else None
        self.canary = _largest({key: count for key, count in ready.items() if key.engine_version == version})
        alive = ready.get(self.stable, 0) + returning.get(self.stable, 0) if self.stable is not None else 0
        self._gone = alive == 0
        others = {key: count for key, count in ready.items() if key.engine_version != version}
        chosen = _largest({key: count for key, count in others.items() if _serves(key, spec)}) or _largest(others)
        if self._settled and alive and (chosen is None or others[chosen] <= alive):
            return
        if chosen is not None:
            self._settled = self._settled and chosen == self.stable
            self._gone = False
        if chosen is not None or not self._settled:
            self.stable = chosen

    def serving(self, side: str) -> SetKey | None:
        """The set that takes the tasks of a side. A side without replicas is served by the other one."""
        if side == CANARY or self._gone:
            return self.canary or self.stable
        return self.stable

    def takes(self, version: SetKey, side: str, spec: PoolSpec) -> bool:
        """Whether tasks of this side go to replicas of this version."""
        if spec.require_same_engine_version:
            return version == self.serving(side)
        if spec.canary is None:
            return True
        return (version.engine_version == spec.canary.engine_version) is (self.serving(side) == self.canary is not None)

    def name(self, side: str, spec: PoolSpec) -> str:
        """For people; empty when versions may mix."""
        chosen = self.serving(side) if spec.require_same_engine_version else None
        return str(chosen) if chosen is not None else ""


def _serves(key: SetKey, spec: PoolSpec) -> bool:
    return key.engine is spec.engine and key.model_ref in ("", spec.model)


def _largest(sets: Mapping[SetKey, int]) -> SetKey | None:
    return max(sets, key=lambda key: (sets[key], _ordered(key.engine_version), key), default=None)


def _ordered(version: str) -> tuple[tuple[int, int, str], ...]:
    """Runs of digits compare as numbers, so that b10000 is above b9999."""
    parts: list[str] = [""]
    for char in version:
        if parts[-1] and char.isdecimal() != parts[-1][-1].isdecimal():
            parts.append("")
        parts[-1] += char
    return tuple((1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts)
