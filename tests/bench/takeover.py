"""A scheduler is killed while 100,000 tasks wait: how long until another has read them all and decides.

A real nats-server (without fsync: publishing is not what is measured), two scheduler processes, one replica that is
busy with nothing. Times are from the moment the successor's lease is stored, and from the kill.
"""

import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from bench.accounting import cpu_seconds, resident_mb
from bench.core import pool, replica, task
from llorch_shared import streams, subjects
from llorch_shared.bus.nats import connect
from llorch_shared.bus.port import Bus, Message
from llorch_shared.settings import NatsSettings
from llorch_shared.wire.registry import LEASE_DECODER, LOAD_DECODER
from support.nats_server import NatsServer
from support.processes import ServiceProcess

TASKS: Final = 100_000
TENANTS: Final = 500
FLUSH_EVERY: Final = 2_000
DEADLINE_S: Final = 120.0


class TakeoverRow(msgspec.Struct, frozen=True, kw_only=True):
    tasks: int
    killed_to_lease_s: float
    """Expiry of the dead one's lease, mostly."""
    lease_to_rebuilt_s: float
    """Until the successor tells a load with every task in it."""
    lease_to_placed_s: float
    """Until its first placement is stored."""
    cpu_s: float
    """Of the successor, from the kill to the rebuilt queue."""
    resident_bytes_per_task: int
    """Of the successor, its growth by the tasks, payload included."""


class Watch:
    """What schedulers make known, with the time it came."""

    def __init__(self, bus: Bus, spec_id: str) -> None:
        self._bus: Final = bus
        self._lease: Final = subjects.lease_key(subjects.shard_of(spec_id))
        self.holders: dict[str, float] = {}
        self.rebuilt_at = 0.0
        self.placed_at = 0.0
        self.holder = ""

    async def start(self) -> None:
        await self._bus.subscribe(subjects.registry_live(self._lease), self._leased)
        await self._bus.subscribe(subjects.ALL_LOADS, self._told)
        await self._bus.subscribe(subjects.ALL_PLACEMENTS, self._placed)

    def _leased(self, message: Message) -> None:
        if message.data and (holder := LEASE_DECODER.decode(message.data).holder):
            if holder not in self.holders:
                self.holders[holder] = time.monotonic()
                self.rebuilt_at = self.placed_at = 0.0
            self.holder = holder

    def _told(self, message: Message) -> None:
        load = LOAD_DECODER.decode(message.data)
        if self.holder and not self.rebuilt_at and sum(load.queued.values()) + load.running >= TASKS:
            self.rebuilt_at = time.monotonic()

    def _placed(self, message: Message) -> None:
        """On the newest replica: the others have no free slot, and their placements are repeated after a takeover."""
        if message.subject == subjects.placement("bench", replica(1).replica_id):
            self.placed_at = self.placed_at or time.monotonic()


async def until(check: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not check():
            await asyncio.sleep(0.01)


async def admit(bus: Bus) -> None:
    """Published as gateways do it, without waiting for each."""
    stream = streams.admission_stream("bench", task().priority)
    for number in range(TASKS):
        request = task()
        bus.publish(
            subjects.admission("bench", request.priority, f"t{number % TENANTS}"),
            msgspec.json.encode(request),
            {"Nats-Msg-Id": request.task_id, subjects.LANE_HEADER: "gw-1"},
        )
        if number % FLUSH_EVERY == 0:
            await bus.flush()
    await bus.flush()
    async with asyncio.timeout(DEADLINE_S):
        while (stored := (await bus.stream_state(stream)).messages) < TASKS:
            await asyncio.sleep(0.05)
    assert stored == TASKS


async def keep_alive(bus: Bus, number: int) -> None:
    """A replica that reports, and claims nothing."""
    record = replica(number)
    key = subjects.registry(subjects.replica_key(record.node_id, record.replica_id))
    await bus.ensure(streams.placements(record.pool_id, record.replica_id))
    while True:
        await bus.store(key, msgspec.json.encode(record), ttl_s=streams.REGISTRY_TTL_S)
        await asyncio.sleep(streams.REGISTRY_RENEW_S)


async def measure() -> TakeoverRow:
    with tempfile.TemporaryDirectory(prefix="llorch-bench-") as folder:
        server = NatsServer(Path(folder) / "nats")
        server.start()
        schedulers = [
            ServiceProcess(
                f"scheduler-{number}",
                ["llorch_scheduler"],
                folder=Path(folder),
                environment={"NATS_URL": server.url, "LLORCH_LOG_LEVEL": "warning"},
            )
            for number in (1, 2)
        ]
        bus = await connect(NatsSettings(url=server.url), name="bench")
        try:
            return await _measure(bus, *schedulers)
        finally:
            await bus.close()
            for process in schedulers:
                process.stop()
            server.stop()


async def _measure(bus: Bus, first: ServiceProcess, second: ServiceProcess) -> TakeoverRow:
    await bus.ensure(streams.base())
    await bus.ensure(streams.admission(pool()))
    await bus.store(subjects.spec(subjects.pool_key("bench")), msgspec.json.encode(pool()))
    watch = Watch(bus, "bench")
    await watch.start()
    await admit(bus)
    replicas = [asyncio.create_task(keep_alive(bus, 0))]
    try:
        first.start()
        await until(lambda: watch.rebuilt_at)
        second.start()
        await asyncio.sleep(3)
        resident, cpu = resident_mb(second.pid), cpu_seconds(second.pid)
        killed_at = time.monotonic()
        first.kill9()
        replicas.append(asyncio.create_task(keep_alive(bus, 1)))
        await until(lambda: len(watch.holders) == 2)
        await until(lambda: watch.rebuilt_at and watch.placed_at)
        leased_at = watch.holders[watch.holder]
        return TakeoverRow(
            tasks=TASKS,
            killed_to_lease_s=round(leased_at - killed_at, 2),
            lease_to_rebuilt_s=round(watch.rebuilt_at - leased_at, 2),
            lease_to_placed_s=round(watch.placed_at - leased_at, 2),
            cpu_s=round(cpu_seconds(second.pid) - cpu, 2),
            resident_bytes_per_task=round((resident_mb(second.pid) - resident) * 1e6 / TASKS),
        )
    finally:
        for task_of_replica in replicas:
            task_of_replica.cancel()
