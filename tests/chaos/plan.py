"""Which fault happens when, to whom and for how long: a pure function of seed, seconds, kinds and the cluster's shape.

Nothing here breaks anything (`nemesis` does). A new kind is one row in `RULES` and one method of the nemesis.
"""

import random
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Final

import msgspec

from llorch_shared import subjects

FIRST_AT_S: Final = 1.0
GAP_S: Final = 1.5
"""Mean time from one fault to the next, seconds. Faults last up to five, so two or three overlap now and then."""
REST_S: Final = 1.0
"""A target is left alone this long after its fault has ended: recovery is measured, not only collapse."""
HOURS_S: Final = 7_200.0
"""How far a clock jumps at most: further than a task's deadline."""
NATS: Final = "nats"


class FaultKind(StrEnum):
    KILL = "kill"
    """SIGKILL, and started again."""
    TERM = "term"
    """SIGTERM, and started again when it has stopped."""
    PAUSE = "pause"
    """SIGSTOP, later SIGCONT."""
    NATS_KILL = "nats-kill"
    NATS_PAUSE = "nats-pause"
    ENGINE_KILL = "engine-kill"
    ENGINE_PAUSE = "engine-pause"
    CUT = "cut"
    """No bytes between one process and the bus; connections break and new ones are refused."""
    STALL = "stall"
    """No bytes between one process and the bus, and no connection breaks."""
    DELAY = "delay"
    """Every byte between one process and the bus comes late."""
    CLOCK = "clock"
    """The wall clock of one process jumps by up to two hours, forwards or back, and later returns."""
    LEASE_THEFT = "lease-theft"
    """A stranger's name in the lease of one shard, written past compare-and-set."""
    DISK_FULL = "disk-full"
    """No byte is free where the bus stores, and later there is room again. Nobody does more about it."""


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """How many processes of each service there are, and which pools."""

    gateways: int = 3
    schedulers: int = 2
    nodes: int = 2
    pools: tuple[str, ...] = ("chaos-a", "chaos-b")

    @property
    def linked(self) -> tuple[str, ...]:
        """Processes with a connection to the bus that work depends on."""
        return (*self.of("gateway", self.gateways), *self.of("scheduler", self.schedulers), *self.of_nodes("poold"))

    @property
    def services(self) -> tuple[str, ...]:
        return (*self.linked, *self.of_nodes("provisioner"))

    @property
    def shards(self) -> tuple[str, ...]:
        return tuple(sorted({str(subjects.shard_of(pool)) for pool in self.pools}))

    def of(self, service: str, count: int) -> tuple[str, ...]:
        return tuple(f"{service}-{number}" for number in range(1, count + 1))

    def of_nodes(self, service: str) -> tuple[str, ...]:
        return self.of(service, self.nodes)


LEADER_OF: Final = "leader of "
"""Before the name of a stream: a target that is whichever server of a cluster leads it just then."""


class Fault(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One fault. `at_s` counts from the begin of the load. `lasts_s` is how long the victim stays down, stopped, cut
    slow or wrong; `strength` is the delay or the jump in seconds, or which of a node's engines is meant, as a part of
    their number."""

    at_s: float
    kind: FaultKind
    target: str
    lasts_s: float = 0.0
    strength: float = 0.0
    when_all_lead: bool = False
    """Not before every scheduler leads a shard and stands by for the others': what is measured then is a takeover, not
    how soon a process starts."""


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """Whom a kind of fault may meet, and the bounds of what is drawn for it."""

    targets: Callable[[Shape], Sequence[str]]
    lasts_s: tuple[float, float] = (0.0, 0.0)
    strength: tuple[float, float] = (0.0, 0.0)
    weight: int = 1


def _bus(_: Shape) -> Sequence[str]:
    return (NATS,)


def _nodes(shape: Shape) -> Sequence[str]:
    return shape.of_nodes("poold")


RULES: Final[dict[FaultKind, Rule]] = {
    FaultKind.KILL: Rule(targets=lambda shape: shape.services, lasts_s=(0.0, 2.5), weight=4),
    FaultKind.TERM: Rule(targets=lambda shape: shape.services, lasts_s=(0.0, 1.0), weight=2),
    FaultKind.PAUSE: Rule(targets=lambda shape: shape.services, lasts_s=(0.5, 5.0), weight=3),
    FaultKind.NATS_KILL: Rule(targets=_bus, lasts_s=(0.0, 2.0)),
    FaultKind.NATS_PAUSE: Rule(targets=_bus, lasts_s=(0.5, 4.0)),
    FaultKind.ENGINE_KILL: Rule(targets=_nodes, strength=(0.0, 0.999), weight=2),
    FaultKind.ENGINE_PAUSE: Rule(targets=_nodes, lasts_s=(0.5, 5.0), strength=(0.0, 0.999)),
    FaultKind.CUT: Rule(targets=lambda shape: shape.linked, lasts_s=(0.3, 5.0), weight=2),
    FaultKind.STALL: Rule(targets=lambda shape: shape.linked, lasts_s=(0.3, 5.0), weight=2),
    FaultKind.DELAY: Rule(targets=lambda shape: shape.linked, lasts_s=(1.0, 5.0), strength=(0.02, 0.3), weight=2),
    FaultKind.CLOCK: Rule(
        targets=lambda shape: shape.services, lasts_s=(1.0, 8.0), strength=(-HOURS_S, HOURS_S), weight=2
    ),
    FaultKind.LEASE_THEFT: Rule(targets=lambda shape: shape.shards),
    FaultKind.DISK_FULL: Rule(targets=_bus, lasts_s=(0.5, 3.0)),
}


def make_plan(seed: int, seconds: float, kinds: Sequence[FaultKind], shape: Shape | None = None) -> tuple[Fault, ...]:
    """Faults in the order of their times, the last one over before `seconds`. Equal arguments give an equal plan."""
    shape = shape or Shape()
    rnd = random.Random(f"faults {seed}")
    kinds = sorted(set(kinds))
    weights = [RULES[kind].weight for kind in kinds]
    free_at: dict[str, float] = {}
    faults: list[Fault] = []
    at_s = FIRST_AT_S
    while kinds:
        at_s += rnd.expovariate(1 / GAP_S)
        if at_s >= seconds:
            break
        kind = rnd.choices(kinds, weights)[0]
        rule = RULES[kind]
        fault = Fault(
            at_s=round(at_s, 3),
            kind=kind,
            target=rnd.choice(rule.targets(shape)),
            lasts_s=round(rnd.uniform(*rule.lasts_s), 3),
            strength=round(rnd.uniform(*rule.strength), 3),
        )
        ends_s = fault.at_s + fault.lasts_s
        if fault.at_s < free_at.get(fault.target, 0) or ends_s >= seconds:
            continue
        free_at[fault.target] = ends_s + REST_S
        faults.append(fault)
    return tuple(faults)


def parse_kinds(text: str) -> tuple[FaultKind, ...]:
    """`kill,cut`, or `all`. Raises ValueError with the names there are."""
    if text in ("", "all"):
        return tuple(FaultKind)
    try:
        return tuple(FaultKind(name.strip()) for name in text.split(","))
    except ValueError as error:
        raise ValueError(f"{error}; faults are all, {', '.join(FaultKind)}") from error
