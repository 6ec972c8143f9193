"""What a scheduler in office is asked: where a task stands, when to come back, where tasks of a session ran."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import msgspec

from llorch_scheduler.core.scheduler import SchedulerCore
from llorch_scheduler.lease import SteppedDown, Term
from llorch_scheduler.locate import Locator
from llorch_shared import subjects
from llorch_shared.bus.port import Bus, BusError, Message, Responder, Subscription, Unanswered
from llorch_shared.streams import admission_stream
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.registry import APPOINTMENT_REQUEST_DECODER
from llorch_shared.wire.session import SESSION_QUESTION_DECODER

_encode: Final = msgspec.json.Encoder().encode


class Answers:
    """Of one term, which ends when they cannot be given."""

    def __init__(
        self,
        bus: Bus,
        term: Term,
        core: SchedulerCore,
        locator: Locator,
        *,
        places_come_free: Callable[[str], Awaitable[bool]],
    ) -> None:
        self._bus: Final = bus
        self._term: Final = term
        self._core: Final = core
        self._locator: Final = locator
        self._places_come_free: Final = places_come_free
        self.given = False

    async def serve(self, leaving: asyncio.Event) -> None:
        """Until `leaving` is set."""
        shard = self._term.shard
        answers: dict[str, Responder] = {
            subjects.locate(shard): self._locator.answer,
            subjects.appoint(shard): self._appoint,
            subjects.session_seen(shard): self._session,
        }
        subscriptions: list[Subscription] = []
        try:
            for subject, answer in answers.items():
                subscriptions.append(await self._bus.serve(subject, answer))
            self.given = True
            await leaving.wait()
        except BusError as error:
            self._term.end(f"questions cannot be answered: {error}")
        finally:
            for subscription in subscriptions:
                await subscription.close()

    async def _appoint(self, message: Message) -> tuple[bytes, Mapping[str, str]]:
        """May this task be admitted now? Raises Unanswered when the term is over: then the server alone decides. Whom
        the server has just refused finds the place of a task that has left the queue."""
        if not self._term.active:
            raise Unanswered(f"this scheduler no longer decides: {self._term.reason}")
        request = APPOINTMENT_REQUEST_DECODER.decode(message.data)
        if request.refused or request.tenant_refused:
            try:
                if await self._places_come_free(admission_stream(request.pool_id, request.priority)):
                    request = msgspec.structs.replace(request, refused=False, tenant_refused=False)
            except SteppedDown as over:
                raise Unanswered(f"this scheduler no longer decides: {self._term.reason}") from over
        return _encode(self._core.appoint(request, now_ms())), {}

    async def _session(self, message: Message) -> tuple[bytes, Mapping[str, str]]:
        if not self._term.active:
            raise Unanswered(f"this scheduler no longer decides: {self._term.reason}")
        return _encode(self._core.session(SESSION_QUESTION_DECODER.decode(message.data), now_ms())), {}
