"""What is measured: each scenario is a pool of mock engines and a load plan; each gives one row of figures."""

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Final

import msgspec

from bench.accounting import Meter
from bench.load import Plan, Result, Route
from support.system import System, mock_pool

STAMPED: Final = {"LLORCH_MOCK_STAMP": "1"}


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    title: str
    rate: float
    """Tokens per second of each stream; 0 is as fast as the engine can."""
    slots: int
    replicas: int
    clients: int
    tasks_per_client: int
    max_tokens: int
    stream: bool = True
    route: Route = Route.TASKS
    beside_engine: bool = False
    """Ask the engine itself as well, for what it takes without us."""
    spread_s: float = 0.0
    capacity: int = 20_000
    deadline_s: float = 120.0


SCENARIOS: Final = (
    Scenario(
        name="first_token",
        title="4 streams x 20 tok/s: time to first token",
        rate=20,
        slots=4,
        replicas=1,
        clients=4,
        tasks_per_client=15,
        max_tokens=12,
        spread_s=0.5,
        beside_engine=True,
    ),
    Scenario(
        name="first_token_openai",
        title="the same 4 streams as chats of OpenAI clients",
        rate=20,
        slots=4,
        replicas=1,
        clients=4,
        tasks_per_client=15,
        max_tokens=12,
        spread_s=0.5,
        beside_engine=True,
        route=Route.OPENAI,
    ),
    Scenario(
        name="paced",
        title="200 streams x 50 tok/s: 10,000 tok/s",
        rate=50,
        slots=100,
        replicas=2,
        clients=200,
        tasks_per_client=1,
        max_tokens=750,
        spread_s=2.0,
    ),
    Scenario(
        name="paced_openai",
        title="the same 200 streams as chats of OpenAI clients",
        rate=50,
        slots=100,
        replicas=2,
        clients=200,
        tasks_per_client=1,
        max_tokens=750,
        spread_s=2.0,
        route=Route.OPENAI,
    ),
    Scenario(
        name="unthrottled",
        title="64 streams, engine unthrottled",
        rate=0,
        slots=64,
        replicas=1,
        clients=64,
        tasks_per_client=1,
        max_tokens=8_000,
    ),
    Scenario(
        name="one_token",
        title="one-token tasks streamed, 64 at once",
        rate=0,
        slots=64,
        replicas=1,
        clients=64,
        tasks_per_client=25,
        max_tokens=1,
    ),
    Scenario(
        name="one_token_openai",
        title="one-token chats of OpenAI clients, 64 at once",
        rate=0,
        slots=64,
        replicas=1,
        clients=64,
        tasks_per_client=25,
        max_tokens=1,
        route=Route.OPENAI,
    ),
    Scenario(
        name="accepted",
        title="accepted tasks, 32 connections, nothing read",
        rate=0,
        slots=64,
        replicas=1,
        clients=32,
        tasks_per_client=80,
        max_tokens=1,
        stream=False,
    ),
)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one scenario. Latencies in milliseconds; CPU in seconds per million tokens, or milliseconds a task."""

    scenario: str
    title: str
    tasks: int
    refused: int
    failed: int
    tokens: int
    wall_s: float
    tasks_per_s: float
    tokens_per_s: float
    accept_ms: tuple[float, float]
    first_token_ms: tuple[float, float]
    engine_first_token_ms: tuple[float, float]
    """Of the engine asked directly, in the same run; 0 where it was not asked."""
    token_ms: tuple[float, float]
    cpu_per_million_tokens: dict[str, float]
    cpu_ms_per_task: dict[str, float]
    resident_mb: dict[str, float]


def percentile(values: list[float], share: float) -> float:
    if not values:
        return 0.0
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)


def pair(values: list[float]) -> tuple[float, float]:
    """Median and 99th percentile."""
    return percentile(values, 0.5), percentile(values, 0.99)


async def measure(scenario: Scenario, *, sync_always: bool) -> Row:
    """Start a fresh system, load it once, account for it."""
    pool = mock_pool(
        "bench",
        replicas=scenario.replicas,
        slots=scenario.slots,
        rate=scenario.rate,
        capacity=scenario.capacity,
        env=STAMPED,
    )
    with tempfile.TemporaryDirectory(prefix="llorch-bench-") as folder:
        settings = {"log_level": "warning"}
        async with System(Path(folder), pools=[pool], settings=settings, sync_always=sync_always) as system:
            host, _, port = system.addresses["gateway-1"].partition(":")
            plan = Plan(
                host=host,
                port=int(port),
                model_ref=pool.model,
                clients=scenario.clients,
                tasks_per_client=scenario.tasks_per_client,
                max_tokens=scenario.max_tokens,
                stream=scenario.stream,
                route=scenario.route,
                spread_s=scenario.spread_s,
                deadline_s=scenario.deadline_s,
            )
            await load(Path(folder), msgspec.structs.replace(plan, clients=2, tasks_per_client=1, max_tokens=5))
            assert system.nats.process is not None
            meter = Meter(
                {
                    "gateway": [system.processes["gateway-1"].pid],
                    "nats": [system.nats.process.pid],
                    "node": [system.processes["poold-1"].pid],
                    "scheduler": [system.processes["scheduler-1"].pid],
                    "engine": system.engines_of("poold-1"),
                }
            )
            meter.start()
            result = await load(Path(folder), plan)
            used, resident = meter.stop(), meter.resident()
            alone = await load(Path(folder), await engine_plan(system, plan)) if scenario.beside_engine else Result()
            return make_row(scenario, result, alone, used, resident)


async def engine_plan(system: System, plan: Plan) -> Plan:
    """The same load for the engine of the first node."""
    url = (await system.engine_urls(plan.model_ref))[0]
    return msgspec.structs.replace(plan, port=int(url.rstrip("/").rpartition(":")[2]), route=Route.ENGINE)


async def load(folder: Path, plan: Plan) -> Result:
    """Run the load client as its own process."""
    path = folder / "plan.json"
    path.write_bytes(msgspec.json.encode(plan))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.load", str(path), stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[1]
    )
    output, _ = await asyncio.wait_for(process.communicate(), plan.deadline_s + 60)
    if process.returncode != 0:
        raise RuntimeError(f"the load client failed with exit code {process.returncode}")
    return msgspec.json.decode(output, type=Result)


def make_row(
    scenario: Scenario, result: Result, alone: Result, cpu: dict[str, float], resident: dict[str, float]
) -> Row:
    millions = result.tokens / 1e6
    return Row(
        scenario=scenario.name,
        title=scenario.title,
        tasks=result.accepted,
        refused=result.refused,
        failed=result.failed,
        tokens=result.tokens,
        wall_s=round(result.wall_s, 2),
        tasks_per_s=round(result.accepted / result.wall_s, 1),
        tokens_per_s=round(result.steady_tokens_per_s),
        accept_ms=pair(result.accept_ms),
        first_token_ms=pair(result.first_token_ms),
        engine_first_token_ms=pair(alone.first_token_ms),
        token_ms=pair(result.token_ms),
        cpu_per_million_tokens={role: round(used / millions, 1) for role, used in cpu.items()} if millions else {},
        cpu_ms_per_task={role: round(1e3 * used / max(1, result.accepted), 2) for role, used in cpu.items()},
        resident_mb={role: round(used, 1) for role, used in resident.items()},
    )
