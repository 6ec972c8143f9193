"""The parts of one gateway put together: streams, snapshot, relay and the handlers of all operations behind one front.

Start order matters: no operation is answered before the lane is subscribed and the registry is read, so the first one
finds a gateway that can serve it.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from llorch_gateway import (
    artifacts_api,
    audit_api,
    listing_api,
    pools_api,
    process_api,
    sessions_api,
    stored_events_api,
    tasks_api,
    tenants_api,
)
from llorch_gateway.admissions import Admissions
from llorch_gateway.answer_room import AnswerRoom
from llorch_gateway.anthropic.routes import AnthropicRoutes
from llorch_gateway.bus_api import BusApi
from llorch_gateway.call import Call
from llorch_gateway.catalog_api import CatalogApi
from llorch_gateway.control import application
from llorch_gateway.cors import Cors
from llorch_gateway.front import Front
from llorch_gateway.identity import Identities, TokenTable
from llorch_gateway.limits import Limits
from llorch_gateway.listing import Listing
from llorch_gateway.lists import ARTIFACTS, ARTIFACTS_AT_ONCE, Turns
from llorch_gateway.openai.door import Door
from llorch_gateway.openai.routes import OpenAiRoutes
from llorch_gateway.recent_admissions import RecentAdmissions
from llorch_gateway.relay.log_life import LogLife
from llorch_gateway.relay.presence import Presence
from llorch_gateway.relay.router import Router
from llorch_gateway.resubmissions import Resubmissions
from llorch_gateway.sessions import Sessions
from llorch_gateway.snapshot import Snapshot
from llorch_gateway.streams import Streams
from llorch_gateway.task_routes import TaskRoutes
from llorch_gateway.tasks import Tasks
from llorch_gateway.waits import Waits
from llorch_shared import streams
from llorch_shared.audit import Audit
from llorch_shared.auth import AuthPolicy, Verifier
from llorch_shared.bus.patience import Step, get_through
from llorch_shared.bus.port import DISCONNECTED, Bus, BusError
from llorch_shared.desired.entries import Author
from llorch_shared.errors import OrchError
from llorch_shared.http_api import Readiness
from llorch_shared.lifecycle import Stop
from llorch_shared.metrics import Metrics
from llorch_shared.session_store import SessionStore
from llorch_shared.settings import GatewaySettings, OidcSettings, Secret, Settings

log = logging.getLogger(__name__)

AUDIT_GATHER_S: Final = 0.05
"""Shorter than others gather: nobody else knows of an admission what it says, and a killed gateway's are lost."""
STREAMS_STOP_S: Final = 2.0
ANSWERS_STOP_S: Final = 2.0
"""Requests under way get this long to be answered before they are told to come back."""


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
        self._audit: Final = Audit(bus, actor=f"gateway/{self.router.lane}", gather_s=AUDIT_GATHER_S)
        self._resubmissions: Final = Resubmissions(bus, self._audit)
        store = SessionStore(bus, self._audit, actor=f"gateway/{self.router.lane}")
        self.sessions: Final = Sessions(bus=bus, snapshot=self.snapshot, store=store, owner=self.router.lane)
        recent = RecentAdmissions(self.snapshot)
        admissions = Admissions(
            bus=bus,
            router=self.router,
            snapshot=self.snapshot,
            audit=self._audit,
            resubmissions=self._resubmissions,
            sessions=self.sessions,
            recent=recent,
            metrics=metrics,
            actor=f"gateway/{self.router.lane}",
            share_bytes=settings.nats.tenant_object_bytes_max,
        )
        self.tasks: Final = Tasks(
            bus=bus,
            router=self.router,
            recent=recent,
            snapshot=self.snapshot,
            metrics=metrics,
            cancel_wait_s=wanted.cancel_wait_ms / 1000,
        )
        admissions.ownership.owner = self.tasks.owner
        admissions.ownership.owner_if_any = self.tasks.owner_if_any
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
            waits=Waits(self.snapshot, recent, wanted),
            microbatch=wanted.sse_microbatch,
        )
        self.tokens: Final = TokenTable(token, wanted.tokens_path(), metrics)
        self._verifiers: Final = (self.tokens, *oidc(wanted.oidc))
        handlers = Turns().of(
            {
                **tasks_api.handlers(self.tasks, admissions),
                **listing_api.handlers(Listing(bus, self.snapshot)),
                **stored_events_api.handlers(bus, self.tasks),
                **audit_api.handlers(bus, self.tasks),
                **sessions_api.handlers(self.sessions),
                **pools_api.handlers(self.snapshot, bus, self._author),
                **tenants_api.handlers(bus, self._author),
                **Turns(ARTIFACTS, ARTIFACTS_AT_ONCE).of(
                    artifacts_api.handlers(bus, share_bytes=settings.nats.tenant_object_bytes_max)
                ),
                **CatalogApi(
                    bus, self.snapshot, self._author, metrics, policy=settings.catalog.trust_policy
                ).handlers(),
                **process_api.handlers(metrics, self.readiness),
            }
        )
        self._bus_api: Final = BusApi(bus=bus, handlers=handlers, tenant=wanted.tenant, instance=self.router.lane)
        answers = AnswerRoom(wanted.answer_bytes_max)
        door = Door(
            admissions=admissions,
            streams=self._streams,
            snapshot=self.snapshot,
            body_bytes_max=wanted.body_bytes_max,
            body_read_s=wanted.body_read_ms / 1000,
            answers=answers,
            stall_s=wanted.sse_stall_ms / 1000,
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
            tasks=TaskRoutes(
                admissions=admissions,
                streams=self._streams,
                body_bytes_max=wanted.body_bytes_max,
                body_read_s=wanted.body_read_ms / 1000,
            ),
            openai=OpenAiRoutes(door),
            anthropic=AnthropicRoutes(door),
            control=application(handlers, body_bytes_max=wanted.body_bytes_max, body_read_s=wanted.body_read_ms / 1000),
            limits=Limits(metrics, time.monotonic),
            cors=Cors(frozenset(wanted.cors_origins)),
            tenant=wanted.tenant,
            answers=answers,
            stall_s=wanted.sse_stall_ms / 1000,
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

    async def start(self, stop: Stop, *, waits: Callable[[BusError], None] | None = None) -> bool:
        """However long the bus takes; `waits` is told what is in the way. False when the wish to stop came first."""
        wanted = self._settings.nats
        base = streams.base(token_bytes_max=wanted.token_bytes_max, replicas=wanted.replicas)
        steps: tuple[Step, ...] = (
            lambda: self._bus.ensure(base),
            self.log_life.look,
            self.router.start,
            self.snapshot.start,
            self.sessions.table.start,
            self._presence.start,
            self._bus_api.start,
        )
        if not await get_through(self._bus, steps, stop, waits=waits):
            return False
        self._audit.start()
        return True

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


def is_guarded(wanted: GatewaySettings, token: Secret) -> bool:
    """Whether callers have to show who they are: any way to do so is configured."""
    return bool(token) or bool(wanted.tokens_file) or bool(wanted.oidc.issuer)


def oidc(wanted: OidcSettings) -> tuple[Verifier, ...]:
    """None where no issuer is named. Only with one is the library for it loaded. Raises SettingsError."""
    if not wanted.issuer:
        return ()
    from llorch_gateway.issuer_keys import IssuerKeys
    from llorch_gateway.oidc import Oidc

    return (Oidc(wanted, IssuerKeys(wanted, time.monotonic)),)
