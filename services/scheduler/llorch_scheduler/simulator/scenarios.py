"""The scenarios that are shipped, as data. `scale` multiplies the load; the fleet grows with it.

Speeds are those of an 8-billion-parameter model in four-bit quantisation, rounded from what is commonly measured on
such cards; they are models of hardware, not measurements of this project. The policy is the core's as it is:
interactive before batch, first in first out inside a class.
"""

from collections.abc import Callable
from typing import Final

from msgspec import structs

from llorch_scheduler.simulator.arrivals import Bursts, ClosedLoop, Poisson
from llorch_scheduler.simulator.scenario import Failure, Flow, Hardware, PoolPlan, ReplicaPlan, Scenario, ScenarioError
from llorch_scheduler.simulator.sizes import LogNormal
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Engine, Priority

RTX_3060: Final = Hardware(name="rtx3060-12gb", vram_mb=12_288, prefill_per_s=1_600, step_ms=18.0, step_per_task_ms=2.2)
RTX_3090: Final = Hardware(name="rtx3090-24gb", vram_mb=24_576, prefill_per_s=3_600, step_ms=9.0, step_per_task_ms=1.1)

CHAT_PROMPT: Final = LogNormal(median=350, sigma=1.0, most=4_000)
CHAT_ANSWER: Final = LogNormal(median=180, sigma=0.8, most=1_500)
JOB_PROMPT: Final = LogNormal(median=1_200, sigma=0.7, most=5_000)
JOB_ANSWER: Final = LogNormal(median=320, sigma=0.6, most=2_000)

INTERACTIVE: Final = Priority.INTERACTIVE
BATCH: Final = Priority.BATCH


def _pool(pool_id: str, *replicas: ReplicaPlan) -> PoolPlan:
    spec = PoolSpec(id=pool_id, engine=Engine.LLAMACPP, model="8b-q4", ctx=8_192, slots=replicas[0].slots)
    return PoolPlan(spec=spec, replicas=replicas, weights_mb=5_000, kv_kb_per_token=128)


def _chat(tenant: str, pool_id: str, per_s: float) -> Flow:
    return Flow(
        tenant=tenant,
        priority=INTERACTIVE,
        pool_id=pool_id,
        arrivals=Poisson(per_s),
        prompt=CHAT_PROMPT,
        output=CHAT_ANSWER,
        deadlines_ms=(600_000,),
    )


def _jobs(tenant: str, pool_id: str, per_s: float) -> Flow:
    """Work that comes in bursts: twice the mean for the first third of every ten minutes, half of it otherwise."""
    return Flow(
        tenant=tenant,
        priority=BATCH,
        pool_id=pool_id,
        arrivals=Bursts(per_s=per_s / 2, burst_per_s=2 * per_s, every_s=600, lasts_s=200),
        prompt=JOB_PROMPT,
        output=JOB_ANSWER,
    )


def home(scale: float) -> Scenario:
    users = max(1, round(4 * scale))
    chat = Flow(
        tenant="family",
        priority=INTERACTIVE,
        pool_id="chat",
        arrivals=ClosedLoop(users=users, think_s=20),
        prompt=CHAT_PROMPT,
        output=CHAT_ANSWER,
        deadlines_ms=(600_000,),
    )
    return Scenario(
        name="home",
        about=f"an RTX 3090 and an RTX 3060, {users} people who chat, and a job queue behind them",
        pools=(
            _pool(
                "chat",
                ReplicaPlan(node="tower", hardware=RTX_3090, slots=8, load_ms=12_000),
                ReplicaPlan(node="closet", hardware=RTX_3060, slots=4, load_ms=25_000),
            ),
        ),
        flows=(chat, _jobs("jobs", "chat", 0.55 * scale)),
        tasks=4_000,
    )


def team(scale: float) -> Scenario:
    """Shares of the tenants fall as 1, 1/2, 1/3 …; each fifth tenant sends jobs."""
    tenants = 20
    total = sum(1 / rank for rank in range(1, tenants + 1))
    flows = tuple(
        (_jobs if rank % 5 == 0 else _chat)(f"tenant-{rank:02d}", "team", 5.0 * scale / rank / total)
        for rank in range(1, tenants + 1)
    )
    replicas = (
        ReplicaPlan(node=f"server-{number // 2}", hardware=RTX_3090, slots=8, load_ms=12_000) for number in range(4)
    )
    return Scenario(
        name="team", about="20 tenants on four RTX 3090", pools=(_pool("team", *replicas),), flows=flows, tasks=20_000
    )


def fleet(scale: float) -> Scenario:
    each = max(1, round(20 * scale))
    names = [f"pool-{number}" for number in range(1, 6)]
    pools = tuple(
        _pool(
            name,
            *(
                ReplicaPlan(node=f"{name}-{number:03d}", hardware=RTX_3090, slots=8, load_ms=12_000)
                for number in range(each)
            ),
        )
        for name in names
    )
    flows = tuple(
        flow for name in names for flow in (_chat("web", name, 1.15 * each), _jobs("offline", name, 0.22 * each))
    )
    return Scenario(
        name="fleet",
        about=f"{5 * each} replicas in five pools of equal size",
        pools=pools,
        flows=flows,
        tasks=max(1_000, round(100_000 * scale)),
    )


def overload(scale: float) -> Scenario:
    """Two cards do about 3.8 chats a second; ten times as many want to."""
    replicas = (ReplicaPlan(node=f"server-{number}", hardware=RTX_3090, slots=8, load_ms=12_000) for number in range(2))
    return Scenario(
        name="overload",
        about="ten times what two RTX 3090 can do; refused clients come back when they are told to",
        pools=(_pool("busy", *replicas),),
        flows=(_chat("crowd", "busy", 34.0 * scale), _chat("regulars", "busy", 4.0 * scale)),
        tasks=20_000,
    )


def node_loss(scale: float) -> Scenario:
    replicas = (
        ReplicaPlan(node=f"server-{number // 2}", hardware=RTX_3090, slots=8, load_ms=12_000) for number in range(8)
    )
    return Scenario(
        name="node-loss",
        about="four nodes with two RTX 3090 each; one is lost and returns, then two others are lost at once",
        pools=(_pool("chat", *replicas),),
        flows=(_chat("web", "chat", 7.0 * scale), _jobs("offline", "chat", 0.8 * scale)),
        tasks=8_000,
        failures=(
            Failure(node="server-0", at_s=120, back_after_s=60),
            Failure(node="server-1", at_s=420, back_after_s=120),
            Failure(node="server-2", at_s=420, back_after_s=180),
        ),
    )


def cold_start(scale: float) -> Scenario:
    replicas = (
        ReplicaPlan(
            node=f"server-{number}",
            hardware=RTX_3090,
            slots=8,
            provision_ms=45_000 + 15_000 * number,
            load_ms=20_000,
            warm=False,
        )
        for number in range(4)
    )
    return Scenario(
        name="cold-start",
        about="four replicas fetch engine and model while the first clients wait already",
        pools=(_pool("new", *replicas),),
        flows=(_chat("web", "new", 2.5 * scale), _jobs("offline", "new", 0.4 * scale)),
        tasks=3_000,
    )


SCENARIOS: Final[dict[str, Callable[[float], Scenario]]] = {
    "home": home,
    "team": team,
    "fleet": fleet,
    "overload": overload,
    "node-loss": node_loss,
    "cold-start": cold_start,
}


def scenario(name: str, *, scale: float = 1.0, tasks: int | None = None) -> Scenario:
    """Raises ScenarioError for an unknown name, or a scale or number of tasks that makes no sense."""
    if name not in SCENARIOS:
        raise ScenarioError(f"there is no scenario {name!r}; there are {', '.join(SCENARIOS)}")
    if not 0.01 <= scale <= 1_000:
        raise ScenarioError(f"a scale of {scale:g} is not between 0.01 and 1000")
    made = SCENARIOS[name](scale)
    if tasks is None:
        return made
    if tasks < 1:
        raise ScenarioError("at least one task has to arrive")
    return structs.replace(made, tasks=tasks)
