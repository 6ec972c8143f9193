"""The scheduler process: lives among others, leases its part of the shards, decides for their pools.

Wires the bus, the live tables and the leases once, and holds one term per shard it leased. What the bus tells is handed
to the term whose shard it belongs to; the rest is none of our business. A lost connection ends every term at once;
after the reconnect the same path as after any takeover is taken. Processes without a shard are hot standby: they follow
the same tables and wait.
"""

import asyncio
import gc
import logging
import secrets
import time
from typing import Final

from llorch_scheduler.asking import Asking
from llorch_scheduler.build import core_is_compiled
from llorch_scheduler.core.balance import Balance, Facts
from llorch_scheduler.core.limits import Limits
from llorch_scheduler.core.roll_call import RollCall
from llorch_scheduler.gauges import PoolGauges
from llorch_scheduler.lease import Lease, Term
from llorch_scheduler.narration import Narration
from llorch_scheduler.presence import Presence, is_presence, living
from llorch_scheduler.rebuild import cancelled
from llorch_scheduler.replica_watch import ReplicaWatch
from llorch_scheduler.term_loop import TermLoop
from llorch_shared import streams, subjects
from llorch_shared.artifacts import Artifacts
from llorch_shared.audit import Audit
from llorch_shared.bus.nats import connect
from llorch_shared.bus.patience import ensure_patiently, unless_stopped
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

TERM_PAUSE_S: Final = 0.1
"""Between two terms of a shard, so that a bus that cannot be read does not make them spin."""
GC_THRESHOLDS: Final = (50_000, 20, 50)
"""Tasks wait by the ten thousand and hold no cycles: Python's default looks through them all again and again, which is
a quarter of a takeover."""
PEER_EVERY_MS: Final = 200
PEER_AGAIN_MS: Final = 100
"""A killed scheduler is found gone within half a second."""
LOOK_S: Final = 0.1
"""The shares are looked at when a lease or a process changed, and at least this often."""


class Scheduler:
    """One scheduler process on an open bus."""

    def __init__(self, bus: Bus, settings: Settings, metrics: Metrics, *, limits: Limits | None = None) -> None:
        self.instance: Final = secrets.token_hex(4)
        self.terms: Final[dict[int, TermLoop]] = {}
        """What decides now, by shard; empty while standby."""
        self._bus: Final = bus
        self._settings: Final = settings
        self._metrics: Final = metrics
        self._gauges: Final = PoolGauges(metrics)
        self._limits: Final = limits or Limits(attempts_max=settings.scheduler.attempts_max)
        self._registry: Final = LiveTable(bus, bucket="REG", changed=self._registry_changed, metrics=metrics)
        self._tenants: Final[dict[str, TenantSpec]] = {}
        self._specs: Final = LiveTable(bus, bucket="SPEC", changed=self._spec_changed, metrics=metrics)
        self._catalog: Final = ModelTable(bus, metrics)
        ttl_s = settings.scheduler.lease_ttl_ms / 1000
        self._presence: Final = Presence(bus, self.instance, ttl_s=ttl_s)
        self.peers: Final = RollCall(every_ms=PEER_EVERY_MS, again_ms=PEER_AGAIN_MS)
        """The other scheduler processes."""
        self._leases: Final = {
            shard: Lease(bus, self._registry, shard=shard, holder=self.instance, ttl_s=ttl_s, gone=self.peers.gone)
            for shard in range(subjects.SHARDS)
        }
        self._balance: Final = Balance(self.instance)
        self._changed: Final = asyncio.Event()
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
        if not await ensure_patiently(self._bus, base, stop):
            return
        await self._bus.subscribe(subjects.ALL_RUNS_LIVE, self._run_changed)
        await self._bus.subscribe(subjects.ALL_CANCEL_SIGNALS, self._cancel_wished)
        await self._bus.serve(subjects.scheduler_here(self.instance), here)
        self._bus.on_disconnect(self._disconnected)
        await self._registry.start()
        await self._specs.start()
        await self._catalog.start()
        await self._sessions.start()
        self._audit.start()
        try:
            await self._presence.announce()
            async with asyncio.TaskGroup() as tasks:
                watching = [
                    tasks.create_task(self._presence.keep(), name="presence"),
                    tasks.create_task(self._ask_peers().keep(), name="ask schedulers"),
                    tasks.create_task(self.replicas.ask_nodes(), name="ask nodes"),
                ]
                await self._share(tasks, stop)
                for each in watching:
                    each.cancel()
                await self._leave(stop)
        finally:
            await self._audit.close()

    async def _share(self, tasks: asyncio.TaskGroup, stop: Stop) -> None:
        """Take and give back shards until asked to stop."""
        stopping = asyncio.create_task(stop.wait(), name="asked to stop")
        stopping.add_done_callback(lambda _: self._changed.set())
        try:
            while not stop:
                self._changed.clear()
                if self._bus.connected:
                    await self._look(tasks)
                try:
                    async with asyncio.timeout(LOOK_S):
                        await self._changed.wait()
                except TimeoutError:
                    continue
        finally:
            stopping.cancel()

    async def _look(self, tasks: asyncio.TaskGroup) -> None:
        facts = Facts(
            living=(living(self._registry) - self.peers.gone) | {self.instance},
            wanted=frozenset(subjects.shard_of(pool_id) for pool_id in _pools(self._specs)),
            holders={shard: holder for shard, lease in self._leases.items() if (holder := lease.holder)},
            mine=frozenset(self.terms),
        )
        plan = self._balance.plan(facts, time.monotonic_ns() // 1_000_000)
        for term in await asyncio.gather(*(self._leases[shard].acquire() for shard in plan.take)):
            if term is not None:
                self.terms[term.shard] = loop = self._term_loop(term)
                tasks.create_task(self._serve(loop), name=f"shard {term.shard}")
        if plan.give is not None:
            handing_over = self.terms[plan.give].hand_over("others have fewer shards")
            tasks.create_task(handing_over, name=f"hand over shard {plan.give}")

    def _ask_peers(self) -> Asking:
        return Asking(
            self._bus,
            self.peers,
            expected=lambda: living(self._registry) - {self.instance},
            subject_of=subjects.scheduler_here,
            gone=self._peer_gone,
        )

    def _peer_gone(self, instance: str) -> None:
        """Its leases need not expire. Told again until its key has."""
        self._changed.set()

    def _term_loop(self, term: Term) -> TermLoop:
        actor = f"scheduler/{self.instance}"
        return TermLoop(
            self._bus,
            term,
            self._leases[term.shard],
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

    async def _serve(self, loop: TermLoop) -> None:
        """One term of one shard, and its lease given back when it ended in order."""
        self._metrics.gauge("scheduler_active").set(len(self.terms))
        try:
            await loop.run()
        finally:
            self._metrics.gauge("scheduler_active").set(len(self.terms) - 1)
        if loop.handed_over:
            await self._leases[loop.shard].release(loop.term)
        else:
            await asyncio.sleep(TERM_PAUSE_S)
        del self.terms[loop.shard]
        self._changed.set()

    async def _leave(self, stop: Stop) -> None:
        """The others count one less before they see what is free, so they take all of it at once."""
        await self._presence.leave()
        await asyncio.gather(*(loop.hand_over(f"asked to stop ({stop.reason})") for loop in self.terms.values()))

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
            self._changed.set()

    def _spec_changed(self, key: str, value: bytes | None) -> None:
        kind, _, pool_id = key.partition(".")
        if key == subjects.SESSION_POLICY_KEY:
            self._sessions.policy_changed(value)
        elif kind == "pool":
            self._changed.set()
            if (loop := self.terms.get(subjects.shard_of(pool_id))) is not None:
                loop.spec_changed(pool_id, value)
        elif kind == "tenant":
            self._tenant_changed(pool_id, value)

    def _tenant_changed(self, name: str, value: bytes | None) -> None:
        self._tenants.pop(name, None)
        if value is not None and (tenant := readable(TENANT_DECODER, value, f"the specification's key tenant.{name}")):
            self._tenants[name] = tenant
        for loop in self.terms.values():
            loop.tenants_changed()


def _pools(specs: LiveTable) -> list[str]:
    """Every pool, removed ones included: tasks may still wait in their queues."""
    return [key.partition(".")[2] for key in specs.known if key.startswith("pool.")]


async def main(settings: Settings, stop: Stop) -> int:
    """Connect, schedule, leave. Returns the exit code."""
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
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
