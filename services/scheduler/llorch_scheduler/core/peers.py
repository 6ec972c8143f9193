"""Replicas that are alike: of equal abilities, and of about equal speed."""

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from llorch_scheduler.core.replica import Replica
from llorch_scheduler.core.replica_sets import SetKey, set_key
from llorch_shared.wire.registry import ReplicaRecord
from llorch_shared.wire.task import Workload


def _steps(least: float, most: float, factor: float) -> tuple[float, ...]:
    """Multiplication only, so that every machine makes the same ones."""
    steps = [least]
    while steps[-1] < most:
        steps.append(steps[-1] * factor)
    return tuple(steps)


_RATES: Final = _steps(1e-3, 1e6, 1.1)
_FIRST_TOKENS: Final = _steps(1.0, 1e7, 1.5)
"""Coarse: the time to a first token varies with its prompt more than with the replica."""


def _floor(steps: tuple[float, ...], measured: float) -> float:
    return steps[max(0, bisect_right(steps, measured) - 1)] if measured > 0 else 0.0


class Abilities(NamedTuple):
    """What feasibility looks at."""

    version: SetKey
    device: str
    workloads: tuple[Workload, ...]
    features: tuple[str, ...]
    kv_bytes_per_token: int
    determinism_class: str = ""


class Speed(NamedTuple):
    """Tokens per second of one task, in steps of 10 %, and milliseconds to its first token, in steps of half; 0 when
    not measured. Each is the step at or below what was measured."""

    tokens_per_s: float
    first_token_ms: float


Entry = tuple[int, int, str, int, "Standing"]
"""(-free VRAM, taken slots, id, stamp, whose it is). Stamps differ, so the last is never compared. An entry counts
while its owner has its stamp."""


@dataclass(slots=True, eq=False)
class Peers:
    """Ready replicas of one kind and speed."""

    speed: Speed
    first_ms: float
    """Until the first token …"""
    token_ms: float
    """… and per token from then on; both 0 when either speed was not measured."""
    free: int = 0
    """How many have a free slot."""
    size: int = 0
    heap: list[Entry] = field(default_factory=list)

    def end_ms(self, expected_tokens: float) -> float:
        """Predicted, from the placement of a task; 0 when not measured."""
        return self.first_ms + self.token_ms * expected_tokens


@dataclass(slots=True, eq=False)
class Slots:
    """Of the replicas that tasks can go to."""

    total: int = 0
    free: int = 0
    replicas: int = 0
    """Ready ones that have them."""


@dataclass(slots=True, eq=False)
class Kind:
    """Ready replicas of equal abilities."""

    abilities: Abilities
    slots: Slots | None = None
    """What its slots are counted in; None while no task can go there."""
    size: int = 0
    free: int = 0
    slots_total: int = 0
    slots_free: int = 0
    peers: dict[Speed, Peers] = field(default_factory=dict)
    open: dict[Speed, Peers] = field(default_factory=dict)
    """Those with a free slot."""


@dataclass(slots=True, eq=False)
class Standing:
    """What the index holds of one replica."""

    replica: Replica
    kind: Kind | None = None
    peers: Peers | None = None
    entry: Entry | None = None
    stamp: int = 0
    """That of its entry; 0 while it has none."""
    version: SetKey | None = None
    """Of its engine when it was ready last."""
    returns: SetKey | None = None
    """The version it counts for while it comes back."""
    draining: bool = False
    slots_total: int = 0
    slots_free: int = 0
    held: int = 0


def abilities_of(record: ReplicaRecord) -> Abilities:
    return Abilities(
        set_key(record),
        record.device,
        record.workloads,
        tuple(sorted(record.features)),
        record.kv_bytes_per_token,
        record.determinism_class,
    )


def speed_of(record: ReplicaRecord) -> Speed:
    return Speed(_floor(_RATES, record.perf_tokens_per_s), _floor(_FIRST_TOKENS, record.perf_first_token_ms))
