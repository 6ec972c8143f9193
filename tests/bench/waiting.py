"""Ten times more clients than places on the real system: do predicted starts come true, and does waiting pay?

A closed crowd: a client submits, is refused, comes back after exactly what it was told, until it is admitted; then the
next one takes its turn. Real starts are read from the run records. Predictions that were told before the pool's rates
were measured are left out; every return counts.
"""

import asyncio
import statistics
import tempfile
import time
import uuid
from pathlib import Path
from typing import Final

import aiohttp
import msgspec

from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus
from llorch_shared.http_api import BACKOFF_HEADER
from llorch_shared.wire.run import RUN_DECODER
from llorch_shared.wire.task import TaskAccepted
from support.system import System, mock_pool

SLOTS: Final = 8
CAPACITY: Final = 64
OVERLOAD: Final = 10
TOKENS: Final = 20
RATE: Final = 100.0
WARM_S: Final = 15.0
RUN_S: Final = 75.0


class WaitingRow(msgspec.Struct, frozen=True, kw_only=True):
    clients: int
    admitted: int
    starts: int
    """Tasks whose predicted start is compared with the real one."""
    start_error_median: float
    """Median of |real - predicted| over real waits."""
    start_wait_ms: float
    """Median real wait."""
    returns: int
    returns_admitted_share: float
    """Of the clients that came back when they were told to."""


class Crowd:
    def __init__(self, address: str, model_ref: str) -> None:
        self._url: Final = f"http://{address}/v1/tasks"
        self._model_ref: Final = model_ref
        self._began: Final = time.monotonic()
        self.admitted = 0
        self.returns = 0
        self.returns_admitted = 0
        self.predicted_ms: dict[str, int] = {}

    @property
    def over(self) -> bool:
        return time.monotonic() - self._began > RUN_S

    @property
    def warm(self) -> bool:
        return time.monotonic() - self._began > WARM_S

    async def client(self, http: aiohttp.ClientSession) -> None:
        """One seat in the crowd, taken by one task after the other."""
        while not self.over:
            await self._task(http, str(uuid.uuid4()))

    async def _task(self, http: aiohttp.ClientSession, task_id: str) -> None:
        returns = False
        while not self.over:
            async with http.post(self._url, data=self._body(task_id)) as answer:
                admitted = answer.status == 202
                if not admitted and answer.status != 429:
                    raise RuntimeError(f"{answer.status}: {await answer.text()}")
                if returns:
                    self.returns += 1
                    self.returns_admitted += admitted
                if admitted:
                    self.admitted += 1
                    if self.warm:
                        told = msgspec.json.decode(await answer.read(), type=TaskAccepted)
                        self.predicted_ms[task_id] = told.predicted_start_ms
                    return
                wait_ms, returns = int(answer.headers[BACKOFF_HEADER]), True
            await asyncio.sleep(wait_ms / 1000)

    def _body(self, task_id: str) -> bytes:
        return msgspec.json.encode(
            {
                "task_id": task_id,
                "session_id": task_id,
                "workload": "completion",
                "model_ref": self._model_ref,
                "engine": "mock",
                "ctx": 4096,
                "priority": "interactive",
                "max_tokens": TOKENS,
                "deadline_ms": 600_000,
                "prompt": "bench",
            }
        )


async def real_starts(bus: Bus) -> dict[str, int]:
    """Milliseconds from admission to start, of every task that started."""
    records = [RUN_DECODER.decode(message.data) for message in await bus.replay(streams.RUN, subjects.ALL_RUNS)]
    return {record.task_id: record.started_ms - record.admitted_ms for record in records if record.started_ms}


async def measure(*, sync_always: bool) -> WaitingRow:
    pool = mock_pool("bench", replicas=2, slots=SLOTS // 2, rate=RATE, capacity=CAPACITY)
    clients = OVERLOAD * (SLOTS + CAPACITY)
    with tempfile.TemporaryDirectory(prefix="llorch-bench-") as folder:
        settings = {"log_level": "warning"}
        async with System(Path(folder), pools=[pool], settings=settings, sync_always=sync_always) as system:
            crowd = Crowd(system.addresses["gateway-1"], pool.model)
            connector = aiohttp.TCPConnector(limit=64)
            headers = {"Content-Type": "application/json"}
            async with aiohttp.ClientSession(connector=connector, headers=headers) as http:
                seats = [asyncio.create_task(crowd.client(http)) for _ in range(clients)]
                await asyncio.sleep(RUN_S)
                for seat in seats:
                    if seat.done():
                        seat.result()
                    seat.cancel()
                await asyncio.wait(seats)
            await asyncio.sleep(3)
            real = await real_starts(system.bus)
    errors = [
        abs(real[task_id] - predicted) / max(1, real[task_id])
        for task_id, predicted in crowd.predicted_ms.items()
        if task_id in real
    ]
    return WaitingRow(
        clients=clients,
        admitted=crowd.admitted,
        starts=len(errors),
        start_error_median=round(statistics.median(errors), 3) if errors else -1.0,
        start_wait_ms=round(statistics.median(real.values())) if real else -1.0,
        returns=crowd.returns,
        returns_admitted_share=round(crowd.returns_admitted / max(1, crowd.returns), 3),
    )
