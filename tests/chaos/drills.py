"""The runs that the promises are measured by: what is asked, what is broken, and what must come of it. Pure.

A drill is a chaos run with a load and a plan of its own; everything that judges a chaos run judges it, too. `scale`
makes a small one of the same kind; the figures that are promised are those of scale 1.
"""

import random
import uuid
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from chaos.asks import Ask, Way, request_of
from chaos.evidence import Evidence
from chaos.goals import Goal, cluster_goals, gateways_goals, ids_goals, real_goals, schedulers_goals
from chaos.leases import LeaseSeen
from chaos.nemesis import Injected
from chaos.plan import LEADER_OF, Fault, FaultKind, Shape, make_plan
from chaos.real import MODEL, again
from chaos.run import Planned
from chaos.stage import Stage
from llorch_shared import streams
from llorch_shared.wire.task import Engine, Priority

ID_FAULTS: Final = (
    FaultKind.KILL,
    FaultKind.TERM,
    FaultKind.PAUSE,
    FaultKind.NATS_KILL,
    FaultKind.ENGINE_KILL,
    FaultKind.CUT,
    FaultKind.STALL,
    FaultKind.LEASE_THEFT,
)

Judges = Callable[[Planned, Evidence, Sequence[Injected], Sequence[LeaseSeen]], list[Goal]]


class Drill(msgspec.Struct, frozen=True, kw_only=True):
    what: str
    """One line for `--help`."""
    plan: Callable[[int, float], Planned]
    """From seed and scale."""
    goals: Judges


def _ask(rnd: random.Random, shape: Shape, *, at_s: float, tokens: int, readers: int, way: Way, doors: int = 2) -> Ask:
    task = str(uuid.UUID(int=rnd.getrandbits(128), version=4))
    pool = rnd.choice(shape.pools)
    return Ask(
        at_s=round(at_s, 3),
        request=request_of(rnd, task, pool, tokens),
        pool=pool,
        tenant="default",
        way=way,
        gateway=rnd.randrange(shape.gateways),
        doors=doors,
        readers=readers,
    )


def _gateways(seed: int, scale: float) -> Planned:
    """All streams are open at once. At 6 tokens a second a stream lasts 67 s, twice that where a node was killed in the
    middle of it: the attempt that follows begins with the first token again."""
    streams, rate, tokens = max(8, round(500 * scale)), 6.0 if scale == 1 else 40.0, 400 if scale == 1 else 200
    rnd = random.Random(f"gateways {seed}")
    lasts_s = tokens / rate
    opened_s = streams / 100
    stage = Stage(slots=2 * streams, rate=rate, capacity=2 * streams, patience_s=4 * lasts_s)
    every_s = 5.0 if scale == 1 else 2.0
    node_at_s = opened_s + lasts_s / 2
    until_s = node_at_s + lasts_s
    kills = [
        Fault(at_s=round(at_s, 3), kind=FaultKind.KILL, target=rnd.choice(stage.shape.of("gateway", 3)), lasts_s=0.5)
        for at_s in _every(every_s, opened_s + every_s, until_s)
    ]
    node = Fault(at_s=round(node_at_s, 3), kind=FaultKind.KILL, target=rnd.choice(("poold-1", "poold-2")), lasts_s=2.0)
    return Planned(
        seed=seed,
        seconds=until_s,
        kinds=(FaultKind.KILL,),
        faults=tuple(sorted([*kills, node], key=lambda fault: fault.at_s)),
        asks=tuple(
            _ask(rnd, stage.shape, at_s=number / 100, tokens=tokens, readers=1, way=Way.STREAM)
            for number in range(streams)
        ),
        stage=stage,
    )


def _ids(seed: int, scale: float) -> Planned:
    tasks, per_s = max(20, round(10_000 * scale)), 40.0
    rnd = random.Random(f"ids {seed}")
    stage = Stage(slots=16, rate=0, capacity=4096, patience_s=180)
    seconds = tasks / per_s
    return Planned(
        seed=seed,
        seconds=seconds,
        kinds=ID_FAULTS,
        faults=make_plan(seed, seconds, ID_FAULTS, stage.shape),
        asks=tuple(
            _ask(rnd, stage.shape, at_s=number / per_s, tokens=rnd.randint(1, 4), readers=0, way=Way.TWICE, doors=3)
            for number in range(tasks)
        ),
        stage=stage,
    )


def _schedulers(seed: int, scale: float) -> Planned:
    """They die in turn, each when both lead: every kill is a takeover."""
    tasks, kills, every_s = max(60, round(10_000 * scale)), max(2, round(20 * scale)), 8.0
    rnd = random.Random(f"schedulers {seed}")
    stage = Stage(slots=8, rate=100, capacity=4096, patience_s=180)
    seconds = every_s * (kills + 1)
    faults = tuple(
        Fault(
            at_s=every_s * number,
            kind=FaultKind.KILL,
            target=f"scheduler-{1 + number % 2}",
            lasts_s=0.5,
            when_all_lead=True,
        )
        for number in range(1, kills + 1)
    )
    return Planned(
        seed=seed,
        seconds=seconds,
        kinds=(FaultKind.KILL,),
        faults=faults,
        asks=tuple(
            _ask(rnd, stage.shape, at_s=seconds * number / tasks, tokens=rnd.randint(1, 8), readers=0, way=Way.FOLLOW)
            for number in range(tasks)
        ),
        stage=stage,
    )


def _cluster(seed: int, scale: float) -> Planned:
    """The server that leads loses its routes for a moment, is killed, and is cut off at last, one stream after another,
    each when all three have everything again."""
    rnd = random.Random(f"cluster {seed}")
    stage = Stage(slots=8, rate=40, servers=3, patience_s=180, shape=Shape(gateways=2))
    queue = streams.admission_stream(stage.shape.pools[0], Priority.INTERACTIVE)
    blinks, every_s, led = (4.0, 10.0), 14.0, (queue, streams.RUN, streams.REG, streams.TOK)
    breaks = [Fault(at_s=at_s, kind=FaultKind.CUT, target=LEADER_OF + streams.TOK, lasts_s=0.2) for at_s in blinks]
    kills = [
        Fault(at_s=every_s * number + 16, kind=FaultKind.NATS_KILL, target=LEADER_OF + stream, lasts_s=5.0)
        for number, stream in enumerate(led[: max(1, round(len(led) * scale))])
    ]
    cut = Fault(at_s=every_s * len(kills) + 16, kind=FaultKind.CUT, target=LEADER_OF + streams.RUN, lasts_s=16.0)
    seconds = cut.at_s + cut.lasts_s + 6
    per_s = 4.0
    return Planned(
        seed=seed,
        seconds=seconds,
        kinds=(FaultKind.NATS_KILL, FaultKind.CUT),
        faults=(*breaks, *kills, cut),
        asks=tuple(
            _ask(rnd, stage.shape, at_s=number / per_s, tokens=rnd.randint(5, 60), readers=1, way=Way.STREAM)
            for number in range(int(seconds * per_s))
        ),
        stage=stage,
    )


def _real(seed: int, scale: float) -> Planned:
    """Each request is asked twice: before anything is broken, and while it is; each time of three gateways at once."""
    streams = max(2, round(16 * scale))
    rnd = random.Random(f"real {seed}")
    stage = Stage(shape=Shape(pools=("chaos-real",)), capacity=64, real=True, patience_s=300)
    mocks = [
        _ask(rnd, stage.shape, at_s=number / 2, tokens=96, readers=1, way=Way.TWICE, doors=3)
        for number in range(streams)
    ]
    asks = tuple(
        msgspec.structs.replace(
            ask,
            request=msgspec.structs.replace(
                ask.request,
                engine=Engine.LLAMACPP,
                model_ref=MODEL,
                prompt=f"Story number {number} begins",
                seed=rnd.getrandbits(31),
            ),
        )
        for number, ask in enumerate(mocks)
    )
    seconds = 5.0 * streams
    gateways = [
        Fault(at_s=at_s, kind=FaultKind.KILL, target=rnd.choice(stage.shape.of("gateway", 3)), lasts_s=0.5)
        for at_s in _every(5.0, 3.0, seconds / 2)
    ]
    others = [
        Fault(at_s=seconds / 8, kind=FaultKind.ENGINE_KILL, target="poold-1"),
        Fault(at_s=seconds / 4, kind=FaultKind.KILL, target="poold-2", lasts_s=2.0),
        Fault(at_s=seconds / 3, kind=FaultKind.KILL, target="scheduler-1", lasts_s=0.5),
    ]
    return Planned(
        seed=seed,
        seconds=seconds,
        kinds=(FaultKind.KILL, FaultKind.ENGINE_KILL),
        faults=tuple(sorted([*gateways, *others], key=lambda fault: fault.at_s)),
        asks=asks,
        stage=stage,
        quiet=tuple(again(ask, str(uuid.UUID(int=rnd.getrandbits(128), version=4))) for ask in asks),
    )


def _every(step_s: float, since_s: float, until_s: float) -> list[float]:
    return [since_s + step_s * number for number in range(int((until_s - since_s) / step_s) + 1)]


DRILLS: Final[dict[str, Drill]] = {
    "cluster": Drill(
        what="three servers of the bus: routes break, leaders are killed, one is cut off, all under steady load",
        plan=_cluster,
        goals=cluster_goals,
    ),
    "gateways": Drill(
        what="500 streams of 400 tokens, a gateway is killed every 5 s and a node once",
        plan=_gateways,
        goals=gateways_goals,
    ),
    "ids": Drill(what="10,000 task ids, each to 3 gateways at once, under faults", plan=_ids, goals=ids_goals),
    "real": Drill(
        what="16 streams of a real engine and model, each asked for at 3 gateways; all kinds of processes are killed",
        plan=_real,
        goals=real_goals,
    ),
    "schedulers": Drill(
        what="a scheduler is killed 20 times during 10,000 tasks", plan=_schedulers, goals=schedulers_goals
    ),
}
