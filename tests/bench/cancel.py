"""64 long prompts fill an engine and are cancelled at once, before a first token, at another gateway than theirs.

How long until each has its receipt, how long by its own account (`cancel_ms`, from the stored wish to the free slot),
how long until the engine says that every slot is free, and what a short task's first token then costs against an idle
engine. The engine reads prompts as llama-server does, a batch of all its slots at a time, and hears nothing meanwhile.
"""

import asyncio
import tempfile
import time
import uuid
from pathlib import Path
from typing import Final

import aiohttp
import msgspec

from bench.scenarios import pair, percentile
from llorch_shared.wire.run import TaskView
from llorch_shared.wire.task import TaskState
from support.system import System, mock_pool

SLOTS: Final = 64
ROUNDS: Final = 8
PROMPT_TOKENS: Final = 4_000
PREFILL_RATE: Final = 400
"""Prompt tokens per second of the engine: ten seconds for the first of them."""
BATCH: Final = 16
"""40 ms of work: what a cancel waits for, at most."""
IDLE_TASKS: Final = 3
"""Short tasks before each round, so that both medians see the same machine."""
IDLE_S: Final = 0.5
DEADLINE_S: Final = 60.0


class CancelRow(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds; pairs are p50 and p99."""

    cancelled: int
    receipt_ms: tuple[float, float]
    """From the request to cancel until its 204."""
    slot_free_ms: tuple[float, float]
    """As the tasks tell it: from the stored wish until the slot is free."""
    all_free_ms: tuple[float, float]
    """From the first of the 64 requests until no slot is busy: once per round."""
    first_token_idle_ms: float
    """Median of short tasks, one at a time, on an idle engine."""
    first_token_after_ms: float
    """Median of the short task right after each round."""


class Client:
    def __init__(self, http: aiohttp.ClientSession, mine: str, other: str, engine: str) -> None:
        self._http: Final = http
        self._mine: Final = mine
        self._other: Final = other
        self._engine: Final = engine

    async def submit(self, prompt: str, max_tokens: int) -> str:
        task = str(uuid.uuid4())
        body = {
            "task_id": task,
            "session_id": task,
            "workload": "completion",
            "model_ref": "mock:words",
            "engine": "mock",
            "ctx": 8192,
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

    async def busy_is(self, busy: int) -> float:
        """When the engine said so."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                async with self._http.get(f"{self._engine}/slots") as answer:
                    slots = msgspec.json.decode(await answer.read())
                if sum(slot["is_processing"] for slot in slots) == busy:
                    return time.monotonic()
                await asyncio.sleep(0.005)


async def measure(*, sync_always: bool) -> CancelRow:
    env = {"LLORCH_MOCK_PREFILL_RATE": str(PREFILL_RATE), "LLORCH_MOCK_BATCH": str(BATCH)}
    pool = mock_pool("bench", replicas=1, slots=SLOTS, rate=100, env=env)
    settings = {"log_level": "warning", "gateway": {"cancel_wait_ms": 30_000}}
    with tempfile.TemporaryDirectory(prefix="llorch-bench-") as folder:
        async with (
            System(Path(folder), pools=[pool], gateways=2, settings=settings, sync_always=sync_always) as system,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http,
        ):
            (engine,) = await system.engine_urls("mock:words")
            return await _measure(Client(http, system.url("gateway-1"), system.url("gateway-2"), engine))


async def _measure(client: Client) -> CancelRow:
    idle: list[float] = []
    receipts: list[float] = []
    freed: list[float] = []
    all_free: list[float] = []
    after: list[float] = []
    for _ in range(ROUNDS):
        await asyncio.sleep(IDLE_S)
        idle += [await client.first_token_ms() for _ in range(IDLE_TASKS)]
        tasks = await asyncio.gather(*(client.submit("word " * PROMPT_TOKENS, 100) for _ in range(SLOTS)))
        await client.busy_is(SLOTS)
        began = time.monotonic()
        free = asyncio.create_task(client.busy_is(0))
        receipts += await asyncio.gather(*(client.cancel(task) for task in tasks))
        all_free.append((await free - began) * 1e3)
        after.append(await client.first_token_ms())
        for view in await asyncio.gather(*(client.view(task) for task in tasks)):
            if view.state is not TaskState.CANCELLED or view.tokens_out or view.cancel_ms is None:
                raise RuntimeError(f"not cancelled before its first token: {view}")
            freed.append(float(view.cancel_ms))
    return CancelRow(
        cancelled=len(receipts),
        receipt_ms=pair(receipts),
        slot_free_ms=pair(freed),
        all_free_ms=pair(all_free),
        first_token_idle_ms=percentile(idle, 0.5),
        first_token_after_ms=percentile(after, 0.5),
    )
