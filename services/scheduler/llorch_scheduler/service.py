"""The scheduler process: standby until the lease is ours, then one term after another.

Wires the bus, the live tables and the lease once. A lost connection ends the term at once; after the reconnect the same
path as after any takeover is taken. A second scheduler process is the hot standby: it follows the same tables and
waits.
"""

import asyncio
import logging
import secrets
from typing import Final

from llorch_scheduler.core.limits import Limits
from llorch_scheduler.lease import Lease
from llorch_scheduler.narration import Narration
from llorch_scheduler.term_loop import TermLoop
from llorch_shared import streams, subjects
from llorch_shared.audit import Audit
from llorch_shared.bus.nats import connect
from llorch_shared.bus.patience import ensure_patiently, unless_stopped
from llorch_shared.bus.port import Bus, BusError, Message
from llorch_shared.lifecycle import Stop
from llorch_shared.live_table import LiveTable
from llorch_shared.logs import narrate
from llorch_shared.metrics import Metrics
from llorch_shared.metrics_endpoint import MetricsEndpoint
from llorch_shared.settings import Settings, secret

log = logging.getLogger("llorch_scheduler")

TERM_PAUSE_S: Final = 0.1
"""Between two terms, so that a bus that cannot be read does not make them spin."""


class Scheduler:
    """One scheduler process on an open bus."""

    def __init__(self, bus: Bus, settings: Settings, metrics: Metrics, *, limits: Limits | None = None) -> None:
        self.instance: Final = secrets.token_hex(4)
        self._bus: Final = bus
        self._settings: Final = settings
        self._limits: Final = limits or Limits(attempts_max=settings.scheduler.attempts_max)
        self._narration: Final = Narration(metrics, f"scheduler/{self.instance}")
        self._registry: Final = LiveTable(bus, bucket="REG", changed=self._registry_changed)
        self._specs: Final = LiveTable(bus, bucket="SPEC", changed=self._spec_changed)
        self._lease: Final = Lease(
            bus, self._registry, holder=self.instance, ttl_s=settings.scheduler.lease_ttl_ms / 1000
        )
        self._audit: Final = Audit(bus)
        self._queues: Final[dict[str, streams.Topology]] = {}
        self.term_loop: TermLoop | None = None
        """What decides now; None while standby."""

    async def run(self, stop: Stop) -> None:
        """Until asked to stop. The bus stays open."""
        nats = self._settings.nats
        base = streams.base(token_bytes_max=nats.token_bytes_max, replicas=nats.replicas)
        if not await ensure_patiently(self._bus, base, stop):
            return
        await self._bus.subscribe(subjects.ALL_RUNS_LIVE, self._run_changed)
        await self._bus.subscribe(subjects.ALL_CANCEL_SIGNALS, self._cancel_wished)
        self._bus.on_disconnect(self._disconnected)
        await self._registry.start()
        await self._specs.start()
        self._audit.start()
        try:
            while await self._one_term(stop) and not await stop.wait(TERM_PAUSE_S):
                log.debug("waiting for the lease again")
        finally:
            await self._audit.close()

    async def _one_term(self, stop: Stop) -> bool:
        term = await self._lease.acquire(stop)
        if term is None:
            return False
        self._term = term
        self.term_loop = loop = TermLoop(
            self._bus,
            term,
            self._lease,
            registry=self._registry,
            specs=self._specs,
            audit=self._audit,
            narration=self._narration,
            actor=f"scheduler/{self.instance}",
            limits=self._limits,
            stream_replicas=self._settings.nats.replicas,
            ensured=self._queues,
        )

        async def end_when_asked() -> None:
            await stop.wait()
            term.end(f"asked to stop ({stop.reason})")

        watcher = asyncio.create_task(end_when_asked(), name="end when asked")
        try:
            await loop.run()
        finally:
            watcher.cancel()
            self.term_loop = None
            term.end("the process ends")
            self._narration.term_ended(term.epoch, term.reason, asked=bool(stop))
        if stop:
            await self._lease.release(term)
        return True

    def _disconnected(self) -> None:
        if self.term_loop is not None:
            self._term.end("the bus connection is lost")

    def _run_changed(self, message: Message) -> None:
        if self.term_loop is not None:
            self.term_loop.run_changed(message)

    def _cancel_wished(self, message: Message) -> None:
        if self.term_loop is not None:
            self.term_loop.cancel_wished(message)

    def _registry_changed(self, key: str, value: bytes | None) -> None:
        if key == subjects.LEASE_KEY:
            self._lease.notice()
        elif self.term_loop is not None:
            self.term_loop.registry_changed(key, value)

    def _spec_changed(self, key: str, value: bytes | None) -> None:
        if self.term_loop is not None:
            self.term_loop.spec_changed(key, value)


async def main(settings: Settings, stop: Stop) -> int:
    """Connect, schedule, leave. Returns the exit code."""
    metrics = Metrics()
    endpoint = MetricsEndpoint(metrics, settings.scheduler.metrics_addr, key="scheduler.metrics_addr")
    address = endpoint.address
    closed = False

    def on_closed() -> None:
        nonlocal closed
        closed = True
        stop.wish("the bus connection ended for good")

    bus = await unless_stopped(
        stop,
        connect(
            settings.nats, name="scheduler", password=secret("NATS_PASSWORD"), metrics=metrics, on_closed=on_closed
        ),
    )
    if bus is None:
        endpoint.close()
        return 0
    scheduler = Scheduler(bus, settings, metrics)
    narrate(
        log,
        f"Scheduler {scheduler.instance} is up as standby; metrics on http://{address}/metrics",
        actor=f"scheduler/{scheduler.instance}",
        action="start",
        metrics_addr=address,
    )
    try:
        await scheduler.run(stop)
    except BusError:
        log.exception("the scheduler cannot work on this bus")
        return 1
    finally:
        await bus.close()
        endpoint.close()
    return 1 if closed else 0
