"""64 long prompts take all slots and are cancelled at once, before a first token, at another gateway than theirs.

How long until each has its receipt, how long by its own account (`cancel_ms`, from the stored wish to the free slot),
how long until the engine says that it works for none, and what the next short task's first token costs against an idle
engine. The engine reads prompts as llama-server does: a batch at a time, and that a caller has left it notices after a
batch in which that caller's prompt had a part.

A first token takes a dozen milliseconds, and twice that when the machine is busy with something else: only a median of
many rounds says whether the cancels cost the next task anything. Idle tasks are asked for in every round, so that both
medians see the same machine; the quartiles tell how much is noise. Both sides ask for the same series, one task after
another, and are compared place by place: the first of a series is slower than those behind it, whatever was before.

The same with a real engine and model, four slots and their prompts, fetched from the package index at the first time.
"""

import asyncio
import random
import tempfile
import time
import uuid
from pathlib import Path
from typing import Final

import aiohttp
import msgspec

from bench.scenarios import pair, percentile
from llorch_shared.embedded_defaults import DEFAULT_ENGINE, DEFAULT_MODEL_REF
from llorch_shared.wire.run import TaskView
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Engine, TaskState
from support.processes import ports_of
from support.system import System, mock_pool

SLOTS: Final = 64
REAL_SLOTS: Final = 4
REAL_CACHE: Final = Path("build/engines/bench")
FETCH_S: Final = 240.0
PREFILL_RATE: Final = 400
"""Prompt tokens per second of the engine: ten seconds for the first of them."""
BATCH: Final = 16
"""40 ms of work: what a cancel waits for, at most."""
SERIES: Final = 3
"""Short tasks before each round, and as many after it."""
IDLE_S: Final = 0.5
INTO_BATCH_S: Final = 0.5
"""Cancels come anywhere in the first so much of the reading, to meet batches at their begin and end."""
DEADLINE_S: Final = 60.0


class Case(msgspec.Struct, frozen=True, kw_only=True):
    pool: PoolSpec
    rounds: int
    ctx: int
    prompt: str


def mock_case() -> Case:
    env = {"LLORCH_MOCK_PREFILL_RATE": str(PREFILL_RATE), "LLORCH_MOCK_BATCH": str(BATCH)}
    pool = mock_pool("bench", replicas=1, slots=SLOTS, rate=100, env=env)
    return Case(pool=pool, rounds=48, ctx=8192, prompt="word " * 4_000)


def real_case() -> Case:
    """Prompts of about 1,100 tokens."""
    pool = PoolSpec(
        id="bench",
        engine=Engine.LLAMACPP,
        model=DEFAULT_MODEL_REF,
        devices="cpu",
        replicas=1,
        slots=REAL_SLOTS,
        ctx=2048,
        provisioning=DEFAULT_ENGINE,
    )
    return Case(pool=pool, rounds=16, ctx=2048, prompt="The cat sat on the mat. " * 160)


class CancelRow(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds; pairs are p50 and p99, triples the quartiles."""

    rounds: int
    cancelled: int
    receipt_ms: tuple[float, float]
    """From the request to cancel until its 204."""
    slot_free_ms: tuple[float, float]
    """As the tasks tell it: from the stored wish until the slot is free."""
    all_free_ms: tuple[float, float]
    """From the first of the requests until no slot is busy: once per round."""
    first_token_idle_ms: tuple[float, float, float]
    """Of the first short task after a rest."""
    first_token_after_ms: tuple[float, float, float]
    """Of the next short task, asked for when the last receipt is there."""
    first_token_after_to_idle: float
    """Ratio of the medians."""
    following_idle_ms: tuple[float, float, float]
    """Of the tasks behind the first one, idle."""
    following_after_ms: tuple[float, float, float]
    following_after_to_idle: float


class Client:
    def __init__(self, http: aiohttp.ClientSession, case: Case, mine: str, other: str, engine: str) -> None:
        self._http: Final = http
        self._case: Final = case
        self._mine: Final = mine
        self._other: Final = other
        self._engine: Final = engine

    async def submit(self, prompt: str, max_tokens: int) -> str:
        task = str(uuid.uuid4())
        body = {
            "task_id": task,
            "session_id": task,
            "workload": "completion",
            "model_ref": self._case.pool.model,
            "engine": self._case.pool.engine,
            "ctx": self._case.ctx,
            "priority": "interactive",
            "max_tokens": max_tokens,
            "deadline_ms": 600_000,
            "prompt": prompt,
        }
        async with self._http.post(f"{self._mine}/v1/tasks", json=body) as answer:
            if answer.status != 202:
                raise RuntimeError(f"{answer.status}: {await answer.text()}")
        return task

    async def cancel(self, task: str) -> float:
        began = time.monotonic()
        async with self._http.post(f"{self._other}/v1/tasks/{task}/cancel") as answer:
            if answer.status != 204:
                raise RuntimeError(f"a cancel answered {answer.status}")
        return (time.monotonic() - began) * 1e3

    async def view(self, task: str) -> TaskView:
        async with self._http.get(f"{self._other}/v1/tasks/{task}") as answer:
            return msgspec.json.decode(await answer.read(), type=TaskView)

    async def running(self, task: str) -> None:
        """Returns when a node has it, and so one of its slots is taken."""
        async with asyncio.timeout(DEADLINE_S):
            while (await self.view(task)).state is not TaskState.RUNNING:
                await asyncio.sleep(0.01)

    async def series(self) -> list[float]:
        """First tokens of short tasks, one after another."""
        return [await self.first_token_ms() for _ in range(SERIES)]

    async def first_token_ms(self) -> float:
        began = time.monotonic()
        task = await self.submit("short", 1)
        async with self._http.get(f"{self._mine}/v1/tasks/{task}/stream") as answer:
            async for line in answer.content:
                if line.startswith(b"event: token"):
                    took_ms = (time.monotonic() - began) * 1e3
                    await answer.read()
                    return took_ms
        raise RuntimeError("a short task ended without a token")

    async def busy_is(self, busy: bool) -> float:
        """When the engine said that it works for somebody, or for nobody."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                async with self._http.get(f"{self._engine}/slots") as answer:
                    slots = msgspec.json.decode(await answer.read())
                if any(slot["is_processing"] for slot in slots) == busy:
                    return time.monotonic()
                await asyncio.sleep(0.005)


async def measure(case: Case, *, sync_always: bool) -> CancelRow:
    settings = {"log_level": "warning", "gateway": {"cancel_wait_ms": 30_000}}
    with tempfile.TemporaryDirectory(prefix="llorch-bench-") as folder:
        system = System(
            Path(folder),
            pools=[case.pool],
            gateways=2,
            settings=settings,
            environment={"LLORCH_CACHE_DIR": str(REAL_CACHE.absolute())},
            sync_always=sync_always,
        )
        system.start_deadline_s = FETCH_S
        async with (
            system,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http,
        ):
            (port,) = [port for pid in system.engines_of("poold-1") for port in ports_of(pid)]
            engine = f"http://127.0.0.1:{port}"
            return await _measure(case, Client(http, case, system.url("gateway-1"), system.url("gateway-2"), engine))


async def _measure(case: Case, client: Client) -> CancelRow:
    idle: list[list[float]] = []
    receipts: list[float] = []
    freed: list[float] = []
    all_free: list[float] = []
    after: list[list[float]] = []
    chance = random.Random(1)
    for _ in range(case.rounds):
        await asyncio.sleep(IDLE_S)
        idle.append(await client.series())
        tasks = await asyncio.gather(*(client.submit(case.prompt, 100) for _ in range(case.pool.slots)))
        await asyncio.gather(*(client.running(task) for task in tasks))
        await client.busy_is(True)
        await asyncio.sleep(chance.uniform(0, INTO_BATCH_S))
        began = time.monotonic()
        free = asyncio.create_task(client.busy_is(False))
        receipts += await asyncio.gather(*(client.cancel(task) for task in tasks))
        all_free.append((await free - began) * 1e3)
        after.append(await client.series())
        for view in await asyncio.gather(*(client.view(task) for task in tasks)):
            if view.state is not TaskState.CANCELLED or view.tokens_out or view.cancel_ms is None:
                raise RuntimeError(f"not cancelled before its first token: {view}")
            freed.append(float(view.cancel_ms))
    idle_ms, after_ms = (quartiles([series[0] for series in side]) for side in (idle, after))
    idle_behind, after_behind = (quartiles([each for series in side for each in series[1:]]) for side in (idle, after))
    return CancelRow(
        rounds=case.rounds,
        cancelled=len(receipts),
        receipt_ms=pair(receipts),
        slot_free_ms=pair(freed),
        all_free_ms=pair(all_free),
        first_token_idle_ms=idle_ms,
        first_token_after_ms=after_ms,
        first_token_after_to_idle=round(after_ms[1] / idle_ms[1], 3),
        following_idle_ms=idle_behind,
        following_after_ms=after_behind,
        following_after_to_idle=round(after_behind[1] / idle_behind[1], 3),
    )


def quartiles(values: list[float]) -> tuple[float, float, float]:
    return percentile(values, 0.25), percentile(values, 0.5), percentile(values, 0.75)
