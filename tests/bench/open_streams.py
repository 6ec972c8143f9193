"""Two thousand streams open at once on one gateway process, a slow task each: memory, CPU, and all end right."""

import asyncio
import resource
import tempfile
from pathlib import Path
from typing import Final

import msgspec

from bench.accounting import cpu_seconds, resident_mb
from bench.load import Plan, Result
from bench.scenarios import STAMPED, load, pair
from support.system import System, mock_pool

STREAMS: Final = 2_000
TOKENS: Final = 10
RATE: Final = 0.8
SPREAD_S: Final = 8.0
"""Opened evenly over this time, and all open for some seconds after it."""
POLL_S: Final = 0.25


class OpenStreamsRow(msgspec.Struct, frozen=True, kw_only=True):
    streams: int
    open_at_once: int
    ended_right: int
    kib_per_stream: float
    """Growth of the gateway's resident memory from idle to all of them open, per stream."""
    gateway_mb: float
    gateway_cpu_share: float
    """Of one core, while more than half of them were open: a token each 1.25 s."""
    token_ms: tuple[float, float]
    """From the engine's write to the client's read, p50 and p99."""


class Watch:
    """The gateway, looked at now and then."""

    def __init__(self, system: System) -> None:
        self._system: Final = system
        self._pid: Final = system.pid_of("gateway-1")
        self.open_at_once = 0
        self.resident_mb = 0.0
        self._full: list[tuple[float, float]] = []
        """Time and CPU seconds while more than half are open."""

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            now_open = int(await self._system.metric("gateway-1", "sse_streams_open"))
            self.open_at_once = max(self.open_at_once, now_open)
            self.resident_mb = max(self.resident_mb, resident_mb(self._pid))
            if now_open > STREAMS / 2:
                self._full.append((loop.time(), cpu_seconds(self._pid)))
            await asyncio.sleep(POLL_S)

    @property
    def cpu_share(self) -> float:
        if len(self._full) < 2:
            return 0.0
        (began, before), (ended, after) = self._full[0], self._full[-1]
        return (after - before) / (ended - began)


def raise_open_files() -> None:
    """For the client, and for node and engine, which hold a connection per task."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def measure(*, sync_always: bool) -> OpenStreamsRow:
    raise_open_files()
    pool = mock_pool("bench", replicas=2, slots=STREAMS // 2, rate=RATE, capacity=2 * STREAMS, env=STAMPED)
    with tempfile.TemporaryDirectory(prefix="llorch-bench-") as name:
        folder = Path(name)
        settings = {"log_level": "warning"}
        async with System(folder, pools=[pool], settings=settings, sync_always=sync_always) as system:
            host, _, port = system.addresses["gateway-1"].partition(":")
            plan = Plan(
                host=host,
                port=int(port),
                model_ref=pool.model,
                clients=STREAMS,
                tasks_per_client=1,
                max_tokens=TOKENS,
                spread_s=SPREAD_S,
            )
            await load(folder, msgspec.structs.replace(plan, clients=20, max_tokens=2, spread_s=0.0))
            idle_mb = resident_mb(system.pid_of("gateway-1"))
            watch = Watch(system)
            watching = asyncio.create_task(watch.run())
            result = await load(folder, plan)
            watching.cancel()
    return make_row(result, watch, idle_mb)


def make_row(result: Result, watch: Watch, idle_mb: float) -> OpenStreamsRow:
    return OpenStreamsRow(
        streams=STREAMS,
        open_at_once=watch.open_at_once,
        ended_right=result.ended - result.failed,
        kib_per_stream=round((watch.resident_mb - idle_mb) * 1e6 / 1024 / STREAMS, 1),
        gateway_mb=round(watch.resident_mb, 1),
        gateway_cpu_share=round(watch.cpu_share, 3),
        token_ms=pair(result.token_ms),
    )
