"""The scheduler shares a live system as it shares a simulated one: the same flows on both, compared by slot time.

The simulated engines are as fast as the live ones were: on a busy machine these fall behind their nominal rate, and who
thinks between tasks then has a smaller part of the time.
"""

import asyncio
import contextlib
from pathlib import Path
from random import Random

import msgspec
import pytest

from llorch_scheduler.simulator.arrivals import ClosedLoop
from llorch_scheduler.simulator.scenario import Flow, Hardware, PoolPlan, ReplicaPlan, Scenario
from llorch_scheduler.simulator.simulation import Simulation
from llorch_scheduler.simulator.sizes import LogNormal
from llorch_scheduler.simulator.summary import summarise
from llorch_shared import subjects
from llorch_shared.bus.port import Message
from llorch_shared.states import FINAL
from llorch_shared.wire.run import RUN_DECODER
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Priority
from support.client import task_request
from support.system import System, mock_pool

pytestmark = pytest.mark.system

RATE = 250
SLOTS = 4
REPLICAS = 2
LIVE_S = 20.0
SETTLE_S = 3.0
TOLERANCE = 0.05


def home_flows(pool_id: str) -> tuple[Flow, ...]:
    """A family that chats, and two job queues behind it of which one weighs twice as much; sped up twenty times."""

    def flow(tenant: str, priority: Priority, users: int, think_s: float, tokens: int) -> Flow:
        return Flow(
            tenant=tenant,
            priority=priority,
            pool_id=pool_id,
            arrivals=ClosedLoop(users=users, think_s=think_s),
            output=LogNormal(median=tokens, sigma=0.5, most=400),
        )

    return (
        flow("family", Priority.INTERACTIVE, 8, 1.0, 90),
        flow("jobs", Priority.BATCH, 10, 0.0, 130),
        flow("photos", Priority.BATCH, 10, 0.0, 60),
    )


def home_pool() -> PoolSpec:
    fairness = {"tenants": [{"id": "photos", "weight": 2}]}
    return mock_pool("home", replicas=REPLICAS, slots=SLOTS, rate=RATE, admission={"fairness": fairness})


def simulated(step_ms: float) -> dict[str, float]:
    card = Hardware(name="mock", vram_mb=10_000, prefill_per_s=1e9, step_ms=step_ms)
    replicas = tuple(
        ReplicaPlan(node=f"n{number}", hardware=card, slots=SLOTS, load_ms=1) for number in range(REPLICAS)
    )
    pool = PoolPlan(spec=home_pool(), replicas=replicas, weights_mb=1, kv_kb_per_token=0)
    scenario = Scenario(name="home", about="", pools=(pool,), flows=home_flows("home"), tasks=3_000)
    result = summarise(Simulation(scenario, seed=1).run(), scale=1.0)
    return _shares({group.name: group.tokens_per_s for group in result.tenants})


async def live(folder: Path) -> tuple[dict[str, float], float]:
    """Closed loops of bus clients; what counts is the slot time of tasks that end after the first seconds. Returns the
    shares, and the milliseconds that a slot was held for each token."""
    held_ms: dict[str, float] = {}
    tokens: list[int] = []
    ended: dict[str, asyncio.Event] = {}
    counting = asyncio.Event()

    def seen(message: Message) -> None:
        record = RUN_DECODER.decode(message.data)
        if record.state in FINAL and (waiting := ended.get(record.task_id)) is not None:
            waiting.set()
            if counting.is_set():
                held_ms[record.tenant] = held_ms.get(record.tenant, 0.0) + record.ended_ms - record.placed_ms
                tokens.append(record.tokens_out)

    async def user(system: System, flow: Flow, number: int) -> None:
        dice = Random(f"{flow.tenant}/{number}")
        while True:
            assert isinstance(flow.arrivals, ClosedLoop)
            await asyncio.sleep(flow.arrivals.think_ms(dice) / 1000)
            request = task_request(priority=flow.priority, max_tokens=flow.output.draw(dice))
            done = ended[request.task_id] = asyncio.Event()
            subject = subjects.admission("home", flow.priority, flow.tenant)
            await system.bus.store(subject, msgspec.json.encode(request), msg_id=request.task_id)
            await done.wait()
            del ended[request.task_id]

    async with System(folder, pools=[home_pool()]) as system:
        await system.bus.subscribe(subjects.ALL_RUNS_LIVE, seen)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LIVE_S), asyncio.TaskGroup() as users:
                for flow in home_flows("home"):
                    assert isinstance(flow.arrivals, ClosedLoop)
                    for number in range(flow.arrivals.users):
                        users.create_task(user(system, flow, number))
                asyncio.get_running_loop().call_later(SETTLE_S, counting.set)
    return _shares(held_ms), sum(held_ms.values()) / sum(tokens)


def _shares(amounts: dict[str, float]) -> dict[str, float]:
    total = sum(amounts.values())
    return {name: amount / total for name, amount in amounts.items()}


async def test_the_shares_of_the_home_agree_with_the_simulators(tmp_path: Path) -> None:
    measured, step_ms = await live(tmp_path)
    expected = simulated(step_ms)
    assert measured.keys() == expected.keys()
    for tenant, share in expected.items():
        assert abs(measured[tenant] - share) < TOLERANCE, f"live {measured}, simulated {expected} at {step_ms} ms"
