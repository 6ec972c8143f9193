"""The gateway put together: a door that says why it is not ready, then bus, streams, snapshot and relay behind it.

Start order matters: no operation is answered before the lane is subscribed and the registry is read, so the first one
finds a gateway that can serve it. Stop order too: first everything is served while readiness says no, so that whoever
spreads requests looks elsewhere; then no new connection is taken, new requests are refused, open streams end with a
word about coming back, then the server stops, then the bus.
"""

import asyncio
import logging
import time
from contextlib import AsyncExitStack
from typing import Final

import msgspec

from llorch_gateway import (
    artifacts_api,
    audit_api,
    listing_api,
    open_files,
    pools_api,
    process_api,
    sessions_api,
    tasks_api,
    tenants_api,
    tls,
)
from llorch_gateway.admissions import Admissions
from llorch_gateway.anthropic.routes import AnthropicRoutes
from llorch_gateway.asgi import Front
from llorch_gateway.bus_api import BusApi
from llorch_gateway.call import Call
from llorch_gateway.catalog_api import CatalogApi
from llorch_gateway.control import application
from llorch_gateway.cors import Cors
from llorch_gateway.entrance import Entrance
from llorch_gateway.identity import Identities, TokenTable
from llorch_gateway.limits import Limits
from llorch_gateway.listing import Listing
from llorch_gateway.openai.door import Door
from llorch_gateway.openai.routes import OpenAiRoutes
from llorch_gateway.relay.log_life import LogLife
from llorch_gateway.relay.presence import Presence
from llorch_gateway.relay.router import Router
from llorch_gateway.resubmissions import Resubmissions
from llorch_gateway.server import HttpServer, split_address
from llorch_gateway.sessions import Sessions
from llorch_gateway.snapshot import Snapshot
from llorch_gateway.streams import Streams
from llorch_gateway.tasks import Tasks
from llorch_gateway.waits import Waits
from llorch_shared import streams, token_file
from llorch_shared.audit import Audit
from llorch_shared.auth import AuthPolicy, Verifier, check_bind
from llorch_shared.bus import nats
from llorch_shared.bus.patience import unless_stopped
from llorch_shared.bus.port import DISCONNECTED, Bus, BusError
from llorch_shared.desired.entries import Author
from llorch_shared.errors import OrchError
from llorch_shared.http_api import Readiness
from llorch_shared.lifecycle import Stop, first_of
from llorch_shared.logs import narrate
from llorch_shared.metrics import Metrics
from llorch_shared.session_store import SessionStore
from llorch_shared.settings import GatewaySettings, OidcSettings, Secret, Settings

log = logging.getLogger(__name__)

START_PAUSE_FIRST_S: Final = 0.2
START_PAUSE_MAX_S: Final = 5.0
STREAMS_STOP_S: Final = 2.0
ANSWERS_STOP_S: Final = 2.0
"""Requests under way get this long to be answered before they are told to come back."""
REQUESTS_BESIDE_STREAMS: Final = 2048
"""Requests at once that are not streams; more wait in the kernel's queue."""


class Gateway:
    """Everything of one process but its bus connection and its signals."""

    def __init__(self, settings: Settings, *, bus: Bus, token: Secret, metrics: Metrics, lane: str = "") -> None:
        wanted = settings.gateway
        self._settings: Final = settings
        self._bus: Final = bus
        self.metrics: Final = metrics
        self.snapshot: Final = Snapshot(bus, metrics)
        self.router: Final = Router(
            bus,
            buffer_bytes=wanted.sse_buffer_bytes,
            heartbeat_s=wanted.sse_heartbeat_ms / 1000,
            stall_s=wanted.sse_stall_ms / 1000,
            lane=lane,
        )
        self.log_life: Final = LogLife(bus)
        self._audit: Final = Audit(bus, actor=f"gateway/{self.router.lane}")
        self._resubmissions: Final = Resubmissions(bus, self._audit)
        store = SessionStore(bus, self._audit, actor=f"gateway/{self.router.lane}")
        self.sessions: Final = Sessions(bus=bus, snapshot=self.snapshot, store=store, owner=self.router.lane)
        admissions = Admissions(
            bus=bus,
            router=self.router,
            snapshot=self.snapshot,
            audit=self._audit,
            resubmissions=self._resubmissions,
            sessions=self.sessions,
            metrics=metrics,
            actor=f"gateway/{self.router.lane}",
        )
        self.tasks: Final = Tasks(
            bus=bus,
            router=self.router,
            admissions=admissions,
            snapshot=self.snapshot,
            metrics=metrics,
            cancel_wait_s=wanted.cancel_wait_ms / 1000,
        )
        admissions.ownership.owner = self.tasks.owner
        self._presence: Final = Presence(
            bus=bus,
            router=self.router,
            cancel=self._cancel_unread,
            enabled=wanted.cancel_on_disconnect,
            grace_s=wanted.cancel_grace_ms / 1000,
        )
        self._streams: Final = Streams(
            bus=bus,
            router=self.router,
            log_life=self.log_life,
            tasks=self.tasks,
            sessions=self.sessions,
            presence=self._presence,
            metrics=metrics,
            streams_max=wanted.streams_max,
            waits=Waits(self.snapshot, admissions, wanted),
            microbatch=wanted.sse_microbatch,
        )
        self.tokens: Final = TokenTable(token, wanted.tokens_path(), metrics)
        self._verifiers: Final = (self.tokens, *_oidc(wanted.oidc))
        handlers = {
            **tasks_api.handlers(self.tasks, admissions),
            **listing_api.handlers(Listing(bus, self.snapshot)),
            **audit_api.handlers(bus, self.tasks),
            **sessions_api.handlers(self.sessions),
            **pools_api.handlers(self.snapshot, bus, self._author),
            **tenants_api.handlers(bus, self._author),
            **artifacts_api.handlers(bus),
            **CatalogApi(bus, self.snapshot, self._author, policy=settings.catalog.trust_policy).handlers(),
            **process_api.handlers(metrics, self.readiness),
        }
        self._bus_api: Final = BusApi(bus=bus, handlers=handlers, tenant=wanted.tenant, instance=self.router.lane)
        door = Door(
            admissions=admissions,
            streams=self._streams,
            snapshot=self.snapshot,
            body_bytes_max=wanted.body_bytes_max,
            body_read_s=wanted.body_read_ms / 1000,
        )
        self.front: Final = Front(
            identities=Identities(
                AuthPolicy(
                    is_guarded(wanted, token),
                    auth_optional=wanted.auth_optional,
                    trust_proxy_auth=wanted.trust_proxy_auth,
                ),
                self._verifiers,
            ),
            admissions=admissions,
            streams=self._streams,
            openai=OpenAiRoutes(door),
            anthropic=AnthropicRoutes(door),
            control=application(handlers, body_bytes_max=wanted.body_bytes_max, body_read_s=wanted.body_read_ms / 1000),
            limits=Limits(metrics, time.monotonic),
            cors=Cors(frozenset(wanted.cors_origins)),
            tenant=wanted.tenant,
            body_bytes_max=wanted.body_bytes_max,
            body_read_s=wanted.body_read_ms / 1000,
        )

    def _author(self, call: Call) -> Author:
        """Of a change of the desired state that a caller asks for."""
        actor = f"gateway/{self.router.lane}"
        return Author(actor, call.identity, self._audit.record, call.channel, call.correlation_id)

    def not_ready(self) -> tuple[str, ...]:
        """Why this process cannot admit and relay now; empty when it can."""
        reasons = []
        if self.front.draining or self.front.stopping:
            reasons.append("stopping")
        problem = self._bus.problem
        if problem == DISCONNECTED:
            reasons.append("the bus is not connected")
        elif problem:
            reasons.append(f"the bus: {problem}")
        if not self.snapshot.held:
            reasons.append("the registry has not been read")
        return tuple(reasons)

    def readiness(self) -> Readiness:
        reasons = self.not_ready()
        warnings = tuple(verifier.problem for verifier in self._verifiers if verifier.problem)
        return Readiness(ready=not reasons, reasons=reasons, warnings=warnings, instance=self.router.lane)

    async def start(self) -> None:
        """Raises BusError."""
        wanted = self._settings.nats
        await self._bus.ensure(streams.base(token_bytes_max=wanted.token_bytes_max, replicas=wanted.replicas))
        await self.log_life.look()
        await self.router.start()
        await self.snapshot.start()
        await self.sessions.table.start()
        await self._presence.start()
        await self._bus_api.start()
        self._audit.start()

    async def undo(self) -> None:
        """Take back a start that did not get through, so that it can be made again."""
        await self._bus_api.stop()
        await self._presence.close()
        await self.sessions.table.close()
        await self.snapshot.close()
        await self.router.close()

    async def tick(self) -> None:
        """Keep time until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.router.pulse(), name="router pulse")
            group.create_task(self._forget_old_loads(), name="old loads")
            group.create_task(self._resubmissions.look(), name="resubmissions")
            group.create_task(self.tokens.watch(), name="token file")

    async def _forget_old_loads(self) -> None:
        while True:
            await asyncio.sleep(1)
            self.snapshot.tick(asyncio.get_running_loop().time())

    async def drain(self) -> None:
        """Serve on, and be left alone by whoever looks at readiness."""
        self.front.draining = True
        await asyncio.sleep(self._settings.gateway.drain_ms / 1000)

    async def stop_serving(self) -> None:
        """Refuse what is new and end what streams."""
        self.front.stopping = True
        await self._bus_api.stop()
        await self._streams.stop(STREAMS_STOP_S)
        await self.front.finish(ANSWERS_STOP_S)

    async def close(self) -> None:
        await self._presence.close()
        await self.router.close()
        await self.sessions.table.close()
        await self.snapshot.close()
        await self._audit.close()

    async def _cancel_unread(self, task: str, call: Call) -> None:
        try:
            await self.tasks.cancel(task, call, reason="disconnect")
        except OrchError as error:
            log.info("a task without readers could not be cancelled: %s", error, extra={"task_id": task})


async def run(settings: Settings, token: Secret, stop: Stop, *, bus_password: Secret | None = None) -> int:
    """Serve until `stop`. Returns the exit code: 0 when somebody wished the end, 1 when something of ours ended it.
    Raises NonLoopbackWithoutToken, TokenFileError and SettingsError before anything is opened."""
    host, _ = split_address(settings.gateway.addr)
    check_bind(host, guarded=is_guarded(settings.gateway, token))
    if (tokens := settings.gateway.tokens_path()) is not None:
        token_file.read(tokens)
    _oidc(settings.gateway.oidc)
    metrics = Metrics()
    entrance = Entrance("the bus is not connected")
    wanted = settings.gateway
    connections = open_files.connections(wanted.streams_max + REQUESTS_BESIDE_STREAMS)
    settings = _with_streams(settings, min(wanted.streams_max, connections.streams_max))
    server = HttpServer(
        entrance,
        wanted.addr,
        requests_max=connections.total,
        stall_s=wanted.sse_stall_ms / 1000,
        header_read_s=wanted.header_read_ms / 1000,
        http2=wanted.prefer_h2,
        tls=tls.options(wanted.tls),
    )
    closed = asyncio.Event()
    async with AsyncExitStack() as stack:
        await server.start()
        stack.push_async_callback(server.stop)
        bus = await unless_stopped(stop, _connect(settings, metrics, closed, bus_password))
        if bus is None:
            return 0
        stack.push_async_callback(bus.close)
        gateway = Gateway(settings, bus=bus, token=token, metrics=metrics)
        stack.push_async_callback(gateway.close)
        if await unless_stopped(stop, _started(gateway, entrance)) is None:
            return 0
        entrance.front = gateway.front
        stack.push_async_callback(gateway.stop_serving)
        narrate(
            log, f"serves on {server.url}", actor="gateway", action="serve", target=server.url, lane=gateway.router.lane
        )
        await first_of(_drained(stop, gateway), gateway.tick(), server.wait(), closed.wait())
        why = stop.reason or ("the bus connection closed for good" if closed.is_set() else "the HTTP server ended")
        narrate(log, f"stops: {why}", actor="gateway", action="stop", target=server.url)
        await server.close_door()
        await gateway.stop_serving()
        await server.stop()
    return 0 if stop else 1


def is_guarded(wanted: GatewaySettings, token: Secret) -> bool:
    """Whether callers have to show who they are: any way to do so is configured."""
    return bool(token) or bool(wanted.tokens_file) or bool(wanted.oidc.issuer)


def _oidc(wanted: OidcSettings) -> tuple[Verifier, ...]:
    """None where no issuer is named. Only with one is the library for it loaded. Raises SettingsError."""
    if not wanted.issuer:
        return ()
    from llorch_gateway.issuer_keys import IssuerKeys
    from llorch_gateway.oidc import Oidc

    return (Oidc(wanted, IssuerKeys(wanted, time.monotonic)),)


def _with_streams(settings: Settings, streams_max: int) -> Settings:
    fewer = msgspec.structs.replace(settings.gateway, streams_max=streams_max)
    return msgspec.structs.replace(settings, gateway=fewer)


async def _drained(stop: Stop, gateway: Gateway) -> None:
    await stop.wait()
    narrate(
        log, f"drains: {stop.reason}", actor="gateway", action="drain", target=gateway.router.lane, reason=stop.reason
    )
    await gateway.drain()


async def _connect(settings: Settings, metrics: Metrics, closed: asyncio.Event, password: Secret | None) -> Bus:
    return await nats.connect(settings.nats, name="gateway", password=password, metrics=metrics, on_closed=closed.set)


async def _started(gateway: Gateway, entrance: Entrance) -> bool:
    """Start, however long the bus takes to have what is needed; what is in the way is said at /readyz and logged."""
    pause = START_PAUSE_FIRST_S
    while True:
        try:
            await gateway.start()
            return True
        except BusError as error:
            entrance.missing = f"the bus: {error or type(error).__name__}"
            log.warning("cannot start yet, again in %.1f s: %s", pause, error, extra={"action": "gateway.waits"})
        await gateway.undo()
        await asyncio.sleep(pause)
        pause = min(START_PAUSE_MAX_S, 2 * pause)
