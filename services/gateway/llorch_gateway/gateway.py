"""One gateway put together: the handlers of all operations, the front for HTTP and the bus's own door, before what they
all ask (`backend.py`).

Start order matters: no operation is answered before the lane is subscribed and the registry is read, so the first one
finds a gateway that can serve it.
"""

import asyncio
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
from llorch_gateway.answer_room import AnswerRoom
from llorch_gateway.anthropic.routes import AnthropicRoutes
from llorch_gateway.backend import Backend
from llorch_gateway.bus_api import BusApi
from llorch_gateway.catalog_api import CatalogApi
from llorch_gateway.control import application
from llorch_gateway.cors import Cors
from llorch_gateway.front import Front
from llorch_gateway.identity import Identities, TokenTable, is_guarded, oidc
from llorch_gateway.limits import Limits
from llorch_gateway.listing import Listing
from llorch_gateway.lists import ARTIFACTS, ARTIFACTS_AT_ONCE, Turns
from llorch_gateway.openai.door import Door
from llorch_gateway.openai.routes import OpenAiRoutes
from llorch_gateway.operations import Handlers
from llorch_gateway.task_routes import TaskRoutes
from llorch_shared import streams
from llorch_shared.auth import AuthPolicy
from llorch_shared.bus.patience import Step, get_through
from llorch_shared.bus.port import DISCONNECTED, Bus, BusError
from llorch_shared.http_api import Readiness
from llorch_shared.lifecycle import Stop
from llorch_shared.metrics import Metrics
from llorch_shared.settings import Secret, Settings

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
        self.backend: Final = Backend(settings, bus=bus, metrics=metrics, lane=lane)
        self.lane: Final = self.backend.router.lane
        self.tokens: Final = TokenTable(token, wanted.tokens_path(), metrics)
        self._verifiers: Final = (self.tokens, *oidc(wanted.oidc))
        handlers = self._handlers()
        self._bus_api: Final = BusApi(bus=bus, handlers=handlers, tenant=wanted.tenant, instance=self.lane)
        self.front: Final = self._front(handlers, guarded=is_guarded(wanted, token))

    def _handlers(self) -> Handlers:
        behind, bus, settings = self.backend, self._bus, self._settings
        artifacts = artifacts_api.handlers(bus, share_bytes=settings.nats.tenant_object_bytes_max)
        catalog = CatalogApi(bus, behind.snapshot, behind.author, self.metrics, policy=settings.catalog.trust_policy)
        return Turns().of(
            {
                **tasks_api.handlers(behind.tasks, behind.admissions),
                **listing_api.handlers(Listing(bus, behind.snapshot)),
                **stored_events_api.handlers(bus, behind.tasks),
                **audit_api.handlers(bus, behind.tasks),
                **sessions_api.handlers(behind.sessions),
                **pools_api.handlers(behind.snapshot, bus, behind.author),
                **tenants_api.handlers(bus, behind.author),
                **Turns(ARTIFACTS, ARTIFACTS_AT_ONCE).of(artifacts),
                **catalog.handlers(),
                **process_api.handlers(self.metrics, self.readiness),
            }
        )

    def _front(self, handlers: Handlers, *, guarded: bool) -> Front:
        behind, wanted = self.backend, self._settings.gateway
        body_bytes_max, body_read_s = wanted.body_bytes_max, wanted.body_read_ms / 1000
        stall_s = wanted.sse_stall_ms / 1000
        answers = AnswerRoom(wanted.answer_bytes_max)
        door = Door(
            admissions=behind.admissions,
            streams=behind.streams,
            snapshot=behind.snapshot,
            body_bytes_max=body_bytes_max,
            body_read_s=body_read_s,
            answers=answers,
            stall_s=stall_s,
        )
        policy = AuthPolicy(guarded, auth_optional=wanted.auth_optional, trust_proxy_auth=wanted.trust_proxy_auth)
        return Front(
            identities=Identities(policy, self._verifiers),
            tasks=TaskRoutes(
                admissions=behind.admissions,
                streams=behind.streams,
                body_bytes_max=body_bytes_max,
                body_read_s=body_read_s,
            ),
            openai=OpenAiRoutes(door),
            anthropic=AnthropicRoutes(door),
            control=application(handlers, body_bytes_max=body_bytes_max, body_read_s=body_read_s),
            limits=Limits(self.metrics, time.monotonic),
            cors=Cors(frozenset(wanted.cors_origins)),
            tenant=wanted.tenant,
            answers=answers,
            stall_s=stall_s,
        )

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
        if not self.backend.snapshot.held:
            reasons.append("the registry has not been read")
        return tuple(reasons)

    def readiness(self) -> Readiness:
        reasons = self.not_ready()
        warnings = tuple(verifier.problem for verifier in self._verifiers if verifier.problem)
        return Readiness(ready=not reasons, reasons=reasons, warnings=warnings, instance=self.lane)

    async def start(self, stop: Stop, *, waits: Callable[[BusError], None] | None = None) -> bool:
        """However long the bus takes; `waits` is told what is in the way. False when the wish to stop came first."""
        wanted = self._settings.nats
        base = streams.base(token_bytes_max=wanted.token_bytes_max, replicas=wanted.replicas)
        steps: tuple[Step, ...] = (lambda: self._bus.ensure(base), *self.backend.start_steps, self._bus_api.start)
        if not await get_through(self._bus, steps, stop, waits=waits):
            return False
        self.backend.audit.start()
        return True

    async def tick(self) -> None:
        """Keep time until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.backend.tick(), name="backend")
            group.create_task(self.tokens.watch(), name="token file")

    async def drain(self) -> None:
        """Serve on, and be left alone by whoever looks at readiness."""
        self.front.draining = True
        await asyncio.sleep(self._settings.gateway.drain_ms / 1000)

    async def stop_serving(self) -> None:
        """Refuse what is new and end what streams."""
        self.front.stopping = True
        await self._bus_api.stop()
        await self.backend.streams.stop(STREAMS_STOP_S)
        await self.front.finish(ANSWERS_STOP_S)

    async def close(self) -> None:
        await self.backend.close()
