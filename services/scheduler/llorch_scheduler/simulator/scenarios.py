"""The scenarios that are shipped, as data. `scale` multiplies the load; the fleet grows with it.

Where a scenario is about a policy, the pool says so in its specification; the others have the defaults.
"""

from collections.abc import Callable
from typing import Final

from msgspec import structs

from llorch_scheduler.simulator.arrivals import Bursts, ClosedLoop
from llorch_scheduler.simulator.cards import CARD_CHATS_PER_S, RTX_3060, RTX_3090, card, chat, jobs, pool
from llorch_scheduler.simulator.scenario import Change, Failure, ReplicaPlan, Scenario, ScenarioError
from llorch_scheduler.simulator.sizes import LogNormal
from llorch_shared.wire.policy import CanarySpec, DeadlineSpec, QueueSpec


def home(scale: float) -> Scenario:
    users = max(1, round(4 * scale))
    return Scenario(
        name="home",
        about=f"an RTX 3090 and an RTX 3060, {users} people who chat, and a job queue behind them",
        pools=(
            pool(
                "chat",
                ReplicaPlan(node="tower", hardware=RTX_3090, slots=8, load_ms=12_000),
                ReplicaPlan(node="closet", hardware=RTX_3060, slots=4, load_ms=25_000),
            ),
        ),
        flows=(
            chat("family", "chat", 0, arrivals=ClosedLoop(users=users, think_s=20)),
            jobs("jobs", "chat", 0.55 * scale),
        ),
        tasks=4_000,
    )


def team(scale: float) -> Scenario:
    """Shares of the tenants fall as 1, 1/2, 1/3 …; each fifth tenant sends jobs."""
    tenants = 20
    total = sum(1 / rank for rank in range(1, tenants + 1))
    return Scenario(
        name="team",
        about="20 tenants on four RTX 3090",
        pools=(pool("team", *(card(f"server-{number // 2}") for number in range(4))),),
        flows=tuple(
            (jobs if rank % 5 == 0 else chat)(f"tenant-{rank:02d}", "team", 5.0 * scale / rank / total)
            for rank in range(1, tenants + 1)
        ),
        tasks=20_000,
    )


def fleet(scale: float) -> Scenario:
    each = max(1, round(200 * scale))
    names = [f"pool-{number}" for number in range(1, 6)]
    return Scenario(
        name="fleet",
        about=f"{5 * each} replicas in five pools of equal size",
        pools=tuple(pool(name, *(card(f"{name}-{number:03d}") for number in range(each))) for name in names),
        flows=tuple(
            flow for name in names for flow in (chat("web", name, 1.15 * each), jobs("offline", name, 0.22 * each))
        ),
        tasks=max(1_000, round(1_000_000 * scale)),
    )


def overload(scale: float) -> Scenario:
    capacity = 2 * CARD_CHATS_PER_S
    return Scenario(
        name="overload",
        about="ten times what two RTX 3090 can do; refused clients come back when they are told to",
        pools=(pool("busy", card("server-0"), card("server-1")),),
        flows=(
            chat("crowd", "busy", 9 * capacity * scale, patience_s=600),
            chat("regulars", "busy", capacity * scale, patience_s=600),
        ),
        tasks=20_000,
    )


def noisy_neighbour(scale: float) -> Scenario:
    """The quiet tenant wants a little more than its half; the other sends fifty times as much."""
    return Scenario(
        name="noisy-neighbour",
        about="two tenants with equal weights on two RTX 3090; one sends fifty times as much as the other",
        pools=(pool("shared", card("server-0"), card("server-1"), queue=QueueSpec(capacity=128, tenant_capacity=64)),),
        flows=(chat("quiet", "shared", 2.0 * scale), chat("noisy", "shared", 100.0 * scale, patience_s=200)),
        tasks=20_000,
    )


def deadline_mix(scale: float) -> Scenario:
    """Near capacity on average and far above it in bursts: what cannot be in time has to be told so at once."""
    words = LogNormal(median=24, sigma=0.5, most=64)
    return Scenario(
        name="deadline-mix",
        about="deadlines from five seconds to half an hour on four RTX 3090, with bursts above what they can do",
        pools=(
            pool(
                "mixed",
                *(card(f"server-{number}") for number in range(4)),
                deadlines=DeadlineSpec(min_on_time_probability=0.95),
            ),
        ),
        flows=(
            chat("editor", "mixed", 3.0 * scale, output=words, max_tokens=words.most, deadlines_ms=(5_000, 10_000)),
            chat(
                "assistants",
                "mixed",
                0,
                arrivals=Bursts(per_s=3.0 * scale, burst_per_s=12.0 * scale, every_s=120, lasts_s=25),
                deadlines_ms=(60_000, 90_000, 180_000),
            ),
            jobs("reports", "mixed", 0.8 * scale, deadlines_ms=(600_000, 1_800_000)),
        ),
        tasks=12_000,
    )


def node_loss(scale: float) -> Scenario:
    return Scenario(
        name="node-loss",
        about="four nodes with two RTX 3090 each; one is lost and returns, then two others are lost at once",
        pools=(pool("chat", *(card(f"server-{number // 2}") for number in range(8))),),
        flows=(chat("web", "chat", 7.0 * scale), jobs("offline", "chat", 0.8 * scale)),
        tasks=8_000,
        failures=(
            Failure(node="server-0", at_s=120, back_after_s=60),
            Failure(node="server-1", at_s=420, back_after_s=120),
            Failure(node="server-2", at_s=420, back_after_s=180),
        ),
    )


def canary(scale: float) -> Scenario:
    """One step takes the canary back: the specification without it."""
    plan = pool(
        "chat",
        *(card(f"server-{number}") for number in range(4)),
        card("canary-0", engine_version="v2"),
        canary=CanarySpec(engine_version="v2", percent=10),
    )
    back = structs.replace(plan.spec, canary=None)
    return Scenario(
        name="canary",
        about="four replicas of the stable engine and one of the next, which gets a tenth of the sessions for 10 min",
        pools=(plan,),
        flows=(chat("web", "chat", 4.0 * scale, sessions=1_000),),
        tasks=4_000,
        changes=(Change(at_s=600, spec=back),),
    )


def cold_start(scale: float) -> Scenario:
    return Scenario(
        name="cold-start",
        about="four replicas fetch engine and model while the first clients wait already",
        pools=(
            pool(
                "new",
                *(
                    card(f"server-{number}", provision_ms=45_000 + 15_000 * number, load_ms=20_000, warm=False)
                    for number in range(4)
                ),
            ),
        ),
        flows=(chat("web", "new", 2.5 * scale), jobs("offline", "new", 0.4 * scale)),
        tasks=3_000,
    )


SCENARIOS: Final[dict[str, Callable[[float], Scenario]]] = {
    "home": home,
    "team": team,
    "fleet": fleet,
    "overload": overload,
    "noisy-neighbour": noisy_neighbour,
    "deadline-mix": deadline_mix,
    "node-loss": node_loss,
    "canary": canary,
    "cold-start": cold_start,
}


def scenario(name: str, *, scale: float = 1.0, tasks: int | None = None) -> Scenario:
    """Raises ScenarioError for an unknown name, or a scale or number of tasks that makes no sense."""
    if name not in SCENARIOS:
        raise ScenarioError(f"there is no scenario {name!r}; there are {', '.join(SCENARIOS)}")
    if not 0.001 <= scale <= 1_000:
        raise ScenarioError(f"a scale of {scale:g} is not between 0.001 and 1000")
    made = SCENARIOS[name](scale)
    if tasks is None:
        return made
    if tasks < 1:
        raise ScenarioError("at least one task has to arrive")
    return structs.replace(made, tasks=tasks)
