"""The scheduler process: lives among others, leases its part of the shards, decides for their pools.

Wires the bus and the live tables once; which shards it has is settled in `shard_shares.py`, one term for each. What the
bus tells is handed to the term whose shard it belongs to; the rest is none of our business. A lost connection ends
every term at once; after the reconnect the same path as after any takeover is taken.
"""

import asyncio
import logging
import secrets
from typing import Final

from llorch_scheduler.build import core_is_compiled
from llorch_scheduler.core.limits import Limits
from llorch_scheduler.gauges import PoolGauges
from llorch_scheduler.lease import Lease, Term
from llorch_scheduler.narration import Narration
from llorch_scheduler.presence import is_presence
from llorch_scheduler.rebuild import cancelled
from llorch_scheduler.replica_watch import ReplicaWatch
from llorch_scheduler.shard_shares import ShardShares
from llorch_scheduler.term_loop import TermLoop
from llorch_shared import streams, subjects
from llorch_shared.artifacts import Artifacts
from llorch_shared.audit import Audit
from llorch_shared.bus.nats import connect
from llorch_shared.bus.patience import Step, get_through, unless_stopped
from llorch_shared.bus.port import Bus, BusError, Message
from llorch_shared.dead_letters import DeadLetters
from llorch_shared.here import here
from llorch_shared.lifecycle import Stop
from llorch_shared.live_table import LiveTable
from llorch_shared.logs import narrate
from llorch_shared.metrics import Metrics
from llorch_shared.metrics_endpoint import MetricsEndpoint
from llorch_shared.model_table import ModelTable
from llorch_shared.readable import readable
from llorch_shared.session_store import SessionStore
from llorch_shared.session_table import SessionTable
from llorch_shared.settings import Settings
from llorch_shared.settings_loading import secret
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.desired import TENANT_DECODER
from llorch_shared.wire.policy import TenantSpec
from llorch_shared.wire.run import decode_run
from llorch_shared.wire.version import NewerVersion, Unreadable

log = logging.getLogger("llorch_scheduler")


class Scheduler:
    """One scheduler process on an open bus."""

    def __init__(self, bus: Bus, settings: Settings, metrics: Metrics, *, limits: Limits | None = None) -> None:
        self.instance: Final = secrets.token_hex(4)
        self._bus: Final = bus
        self._settings: Final = settings
        self._metrics: Final = metrics
        self._gauges: Final = PoolGauges(metrics)
        self._limits: Final = limits or Limits(attempts_max=settings.scheduler.attempts_max)
        self._registry: Final = LiveTable(bus, bucket="REG", changed=self._registry_changed, metrics=metrics)
        self._tenants: Final[dict[str, TenantSpec]] = {}
        self._specs: Final = LiveTable(bus, bucket="SPEC", changed=self._spec_changed, metrics=metrics)
        self._catalog: Final = ModelTable(bus, metrics)
        self.shares: Final = ShardShares(
            bus,
            self.instance,
            registry=self._registry,
            specs=self._specs,
            ttl_s=settings.scheduler.lease_ttl_ms / 1000,
            metrics=metrics,
            begin=self._begin,
        )
        self.terms: Final = self.shares.terms
        """What decides now, by shard; empty while standby."""
        self._audit: Final = Audit(bus, actor=f"scheduler/{self.instance}")
        self._sessions: Final = SessionTable(bus)
        self._accounts: Final = SessionStore(bus, self._audit, actor=f"scheduler/{self.instance}")
        self._artifacts: Final = Artifacts(bus, share_bytes=settings.nats.tenant_object_bytes_max)
        self._dead: Final = DeadLetters(bus, actor=f"scheduler/{self.instance}", metrics=metrics)
        self.replicas: Final = ReplicaWatch(bus, self.terms)

    async def run(self, stop: Stop) -> None:
        """Until asked to stop. The bus stays open."""
        nats = self._settings.nats
        base = streams.base(token_bytes_max=nats.token_bytes_max, replicas=nats.replicas)
        self._bus.on_disconnect(self._disconnected)
        steps: tuple[Step, ...] = (
            lambda: self._bus.ensure(base),
            lambda: self._bus.subscribe(subjects.ALL_RUNS_LIVE, self._run_changed),
            lambda: self._bus.subscribe(subjects.ALL_CANCEL_SIGNALS, self._cancel_wished),
            lambda: self._bus.serve(subjects.scheduler_here(self.instance), here),
            self._registry.start,
            self._specs.start,
            self._catalog.start,
            self._sessions.start,
        )
        if not await get_through(self._bus, steps, stop):
            return
        self._audit.start()
        try:
            await self.shares.announce()
            async with asyncio.TaskGroup() as tasks:
                asking = tasks.create_task(self.replicas.ask_nodes(), name="ask nodes")
                await self.shares.keep(tasks, stop)
                asking.cancel()
                await self.shares.leave(stop)
        finally:
            await self._audit.close()

    def _begin(self, term: Term, lease: Lease) -> TermLoop:
        actor = f"scheduler/{self.instance}"
        return TermLoop(
            self._bus,
            term,
            lease,
            registry=self._registry,
            specs=self._specs,
            tenants=self._tenants,
            audit=self._audit,
            narration=Narration(self._metrics, self._gauges, actor, shard=term.shard),
            actor=actor,
            limits=self._limits,
            stream_replicas=self._settings.nats.replicas,
            dead=self._dead,
            sessions=self._sessions,
            accounts=self._accounts,
            models=self._catalog.models,
            artifacts=self._artifacts,
        )

    def _disconnected(self) -> None:
        for loop in self.terms.values():
            loop.term.end("the bus connection is lost")

    # what the bus tells; these run in its reader

    def _run_changed(self, message: Message) -> None:
        if not self.terms:
            return
        shard = -1
        try:
            record = decode_run(message.data, message.headers)
            shard = subjects.shard_of(record.pool_id)
        except NewerVersion as error:
            self._metrics.counter("messages_ignored_total").labels("run").inc()
            log.info("%s #%d is passed over: %s", message.subject, message.seq, error)
            for loop in self.terms.values():
                loop.passed_newer(message.seq)
            return
        except Unreadable:
            log.exception("the run record at %s #%d cannot be read", message.subject, message.seq)
        for held, loop in self.terms.items():
            if held == shard:
                loop.run_changed(record, message.seq)
            else:
                loop.passed(message.seq)

    def _cancel_wished(self, message: Message) -> None:
        """A wish names no pool: every shard looks whether the task is one of its own."""
        for loop in self.terms.values():
            loop.cancel_wished(cancelled(message.subject, message.data, now_ms()))

    def _registry_changed(self, key: str, value: bytes | None) -> None:
        if key.startswith("replica."):
            self.replicas.replica_changed(key, value)
        elif key.startswith("node."):
            self.replicas.node_changed(key, value)
        elif is_presence(key) or key.startswith("lease."):
            self.shares.look()

    def _spec_changed(self, key: str, value: bytes | None) -> None:
        kind, _, pool_id = key.partition(".")
        if key == subjects.SESSION_POLICY_KEY:
            self._sessions.policy_changed(value)
        elif kind == "pool":
            self.shares.look()
            if (loop := self.terms.get(subjects.shard_of(pool_id))) is not None:
                loop.watch.spec_changed(pool_id, value)
        elif kind == "tenant":
            self._tenant_changed(pool_id, value)

    def _tenant_changed(self, name: str, value: bytes | None) -> None:
        self._tenants.pop(name, None)
        if value is not None and (tenant := readable(TENANT_DECODER, value, f"the specification's key tenant.{name}")):
            self._tenants[name] = tenant
        for loop in self.terms.values():
            loop.watch.tenants_changed()


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
    core = "a compiled" if core_is_compiled() else "an interpreted"
    narrate(
        log,
        f"Scheduler {scheduler.instance} is up as standby with {core} core; metrics on http://{address}/metrics",
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
