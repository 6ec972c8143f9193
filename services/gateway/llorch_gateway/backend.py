"""What stands behind all doors of one gateway: admissions, tasks, sessions and streams, over one bus connection."""

import asyncio
import logging
from typing import Final

from llorch_gateway.admissions import Admissions
from llorch_gateway.call import Call
from llorch_gateway.recent_admissions import RecentAdmissions
from llorch_gateway.relay.log_life import LogLife
from llorch_gateway.relay.presence import Presence
from llorch_gateway.relay.router import Router
from llorch_gateway.resubmissions import Resubmissions
from llorch_gateway.session_reservations import SessionReservations
from llorch_gateway.sessions import Sessions
from llorch_gateway.snapshot import Snapshot
from llorch_gateway.streams import Streams
from llorch_gateway.tasks import Tasks
from llorch_gateway.waits import Waits
from llorch_shared.audit import Audit
from llorch_shared.bus.patience import Step
from llorch_shared.bus.port import Bus
from llorch_shared.desired.entries import Author
from llorch_shared.errors import OrchError
from llorch_shared.metrics import Metrics
from llorch_shared.session_store import SessionStore
from llorch_shared.session_table import SessionTable
from llorch_shared.settings import Settings

log = logging.getLogger(__name__)

AUDIT_GATHER_S: Final = 0.05
"""Shorter than others gather: nobody else knows of an admission what it says, and a killed gateway's are lost."""


class Backend:
    def __init__(self, settings: Settings, *, bus: Bus, metrics: Metrics, lane: str) -> None:
        wanted = settings.gateway
        self.snapshot: Final = Snapshot(bus, metrics)
        self.router: Final = Router(
            bus,
            buffer_bytes=wanted.sse_buffer_bytes,
            heartbeat_s=wanted.sse_heartbeat_ms / 1000,
            stall_s=wanted.sse_stall_ms / 1000,
            lane=lane,
        )
        self._actor: Final = f"gateway/{self.router.lane}"
        self.log_life: Final = LogLife(bus)
        self.audit: Final = Audit(bus, actor=self._actor, gather_s=AUDIT_GATHER_S)
        self._resubmissions: Final = Resubmissions(bus, self.audit)
        store = SessionStore(bus, self.audit, actor=self._actor)
        self._session_table: Final = SessionTable(bus)
        self.snapshot.on_session_policy = self._session_table.policy_changed
        self.sessions: Final = Sessions(bus, self.snapshot, self._session_table, store)
        reservations = SessionReservations(self._session_table, store, owner=self.router.lane)
        recent = RecentAdmissions(self.snapshot)
        self.admissions: Final = Admissions(
            bus=bus,
            router=self.router,
            snapshot=self.snapshot,
            audit=self.audit,
            resubmissions=self._resubmissions,
            reservations=reservations,
            recent=recent,
            metrics=metrics,
            actor=self._actor,
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
        self.admissions.ownership.owner = self.tasks.owner
        self.admissions.ownership.owner_if_any = self.tasks.owner_if_any
        self.presence: Final = Presence(
            bus=bus,
            router=self.router,
            cancel=self._cancel_unread,
            enabled=wanted.cancel_on_disconnect,
            grace_s=wanted.cancel_grace_ms / 1000,
        )
        self.streams: Final = Streams(
            bus=bus,
            router=self.router,
            log_life=self.log_life,
            tasks=self.tasks,
            reservations=reservations,
            presence=self.presence,
            metrics=metrics,
            streams_max=wanted.streams_max,
            waits=Waits(self.snapshot, recent, wanted),
            microbatch=wanted.sse_microbatch,
        )

    def author(self, call: Call) -> Author:
        """Of a change of the desired state that a caller asks for."""
        return Author(self._actor, call.identity, self.audit.record, call.channel, call.correlation_id)

    @property
    def start_steps(self) -> tuple[Step, ...]:
        """What has to succeed, in this order, before anything is answered."""
        return (
            self.log_life.look,
            self.router.start,
            self.snapshot.start,
            self._session_table.start,
            self.presence.start,
        )

    async def tick(self) -> None:
        """Keep time until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.router.pulse(), name="router pulse")
            group.create_task(self.log_life.keep(), name="life of the token log")
            group.create_task(self._forget_old_loads(), name="old loads")
            group.create_task(self._resubmissions.look(), name="resubmissions")

    async def close(self) -> None:
        await self.presence.close()
        await self.router.close()
        await self._session_table.close()
        await self.snapshot.close()
        await self.audit.close()

    async def _forget_old_loads(self) -> None:
        while True:
            await asyncio.sleep(1)
            self.snapshot.tick(asyncio.get_running_loop().time())

    async def _cancel_unread(self, task: str, call: Call) -> None:
        try:
            await self.tasks.cancel(task, call, reason="disconnect")
        except OrchError as error:
            log.info("a task without readers could not be cancelled: %s", error, extra={"task_id": task})
