"""Tasks after admission: where is it, how does it stand, end it. The same for HTTP and bus callers."""

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Final

import msgspec

from llorch_gateway.call import Call
from llorch_gateway.core import record as records
from llorch_gateway.core.prospect import is_loading
from llorch_gateway.failures import unavailable
from llorch_gateway.recent_admissions import RecentAdmissions
from llorch_gateway.relay.router import Router
from llorch_gateway.snapshot import Snapshot
from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus, NoResponder, Unanswered
from llorch_shared.errors import OrchError, invalid, not_found
from llorch_shared.identifiers import is_uuid
from llorch_shared.logs import narrate
from llorch_shared.metrics import Metrics
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.run import LOCATED_DECODER, CancelRequest, Located, RunRecord, TaskView, WaitsFor, decode_run
from llorch_shared.wire.task import TaskRef, TaskState
from llorch_shared.wire.version import NewerVersion

log = logging.getLogger(__name__)

LOCATE_TIMEOUT_S: Final = 2.0
LOCATE_PATIENCE_S: Final = 6.0
"""A shard is handed from one scheduler to the next in a moment, and taken over from a dead one in a few seconds:
whoever looks for a task meanwhile waits for the one who knows."""
LOCATE_AGAIN_S: Final = 0.1
NOT_FOUND: Final = 404
RECORD_POLL_S: Final = 0.2
"""While a cancel waits, how often the record is read in case its terminal frame gets lost."""


@dataclass(frozen=True, slots=True)
class Found:
    """A task that exists: its record once it was placed, else where it is queued."""

    record: RunRecord | None
    located: Located | None
    local: bool
    """Whether its frames come on this process's lane."""

    @property
    def tenant(self) -> str:
        if self.record is not None:
            return self.record.tenant
        assert self.located is not None
        return self.located.tenant

    def view(self, task: str) -> TaskView:
        if self.record is not None:
            return records.view_of_run(self.record)
        assert self.located is not None
        return records.view_of_queued(task, self.located)


def task_id(text: str) -> str:
    """The canonical id of a path or payload. Raises OrchError."""
    if not is_uuid(text):
        raise invalid("the task id must be a UUID")
    return text.lower()


class Tasks:
    """Lookups and cancels."""

    def __init__(
        self,
        *,
        bus: Bus,
        router: Router,
        recent: RecentAdmissions,
        snapshot: Snapshot,
        metrics: Metrics,
        cancel_wait_s: float,
    ) -> None:
        self._bus: Final = bus
        self._snapshot: Final = snapshot
        self._router: Final = router
        self._recent: Final = recent
        self._cancel_wait_s: Final = cancel_wait_s
        self._ignored: Final = metrics.counter("messages_ignored_total").labels("run")

    async def find(self, task: str, call: Call) -> Found:
        """Who may see what is decided here, for every operation on a task: to a caller that is bound to its tenant
        another's task is one that nobody knows. Raises OrchError 404, or 503 when those who would know do not answer
        for long; BusError."""
        found = await self._find(task)
        if not call.may_see(found.tenant):
            raise not_found(f"task {task}")
        return found

    def is_fresh(self, task: str, call: Call) -> bool:
        """Whether its stream can be read from here without a lookup, by a caller that may."""
        if not self._router.is_fresh(task):
            return False
        return not call.bound or self._recent.tenant_of(task) == call.tenant

    async def owner(self, task: str) -> str:
        """Whose task it is. Raises as `find`."""
        return (await self._find(task)).tenant

    async def owner_if_any(self, task: str) -> str | None:
        """Whose task it is, empty for nobody's; asked once, None when somebody who may know does not answer. Raises
        OrchError 503, BusError."""
        try:
            found = await self._look(task)
        except OrchError as error:
            if error.status == NOT_FOUND:
                return ""
            raise
        return None if found is None else found.tenant

    async def _find(self, task: str) -> Found:
        deadline = time.monotonic() + LOCATE_PATIENCE_S
        while (found := await self._look(task)) is None:
            if time.monotonic() > deadline:
                raise unavailable("a scheduler that may know the task does not answer")
            await asyncio.sleep(LOCATE_AGAIN_S)
        return found

    async def _look(self, task: str) -> Found | None:
        """None when somebody who may know it does not answer. Raises OrchError 404, 503; BusError."""
        record = await self.record(task)
        if record is not None:
            return Found(record, None, record.lane == self._router.lane)
        located = self._recent.located(task)
        if located is not None:
            return Found(None, located, located.lane == self._router.lane)
        located = await self._locate(task)
        if located is None:
            return None
        if located.found:
            return Found(None, located, located.lane == self._router.lane)
        record = await self.record(task)
        if record is None:
            raise not_found(f"task {task}")
        return Found(record, None, record.lane == self._router.lane)

    async def _locate(self, task: str) -> Located | None:
        """Ask those who decide for the pools, all at once; the first who has it is believed. None when none has it and
        one of them does not answer."""
        asking = [asyncio.create_task(self._ask(shard, task)) for shard in sorted(self._snapshot.shards())]
        silent = False
        try:
            for answer in asyncio.as_completed(asking):
                located = await answer
                if located is not None and located.found:
                    return located
                silent = silent or located is None
        finally:
            for one in asking:
                one.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        return None if silent else Located(found=False)

    async def _ask(self, shard: int, task: str) -> Located | None:
        """None when nobody answers for the pools of this shard."""
        try:
            answer = await self._bus.request(
                subjects.locate(shard), msgspec.json.encode(TaskRef(task_id=task)), timeout_s=LOCATE_TIMEOUT_S
            )
        except (NoResponder, Unanswered):
            return None
        return LOCATED_DECODER.decode(answer.data)

    async def record(self, task: str) -> RunRecord | None:
        """Raises BusError; OrchError 503 for what a newer release wrote: a gateway of that release can tell."""
        message = await self._bus.last(streams.RUN, subjects.run(task))
        if message is None or message.deleted:
            return None
        try:
            return decode_run(message.data, message.headers)
        except NewerVersion as error:
            self._ignored.inc()
            log.info("%s #%d is passed over: %s", message.subject, message.seq, error)
            raise unavailable("this task's record was written by a newer release; ask another gateway") from error

    async def get(self, task: str, call: Call) -> TaskView:
        view = (await self.find(task, call)).view(task)
        if view.state is TaskState.QUEUED and is_loading(self._snapshot.loads.get(view.pool_id or "")):
            view = msgspec.structs.replace(view, waits_for=WaitsFor.MODEL)
        return view

    async def cancel(self, task: str, call: Call, *, reason: str = "client") -> tuple[bool, TaskView]:
        """Store the wish, wake who holds the task, wait for the receipt. True: the task has ended and its slot is
        free. False: the wish is kept, the receipt is still out. Raises OrchError, BusError."""
        found = await self.find(task, call)
        if found.record is not None and records.is_final(found.record):
            return True, found.view(task)
        began = time.monotonic()
        watch = await self._router.watch(task, local=found.local)
        try:
            wish = msgspec.json.encode(
                CancelRequest(
                    task_id=task,
                    reason=reason,
                    correlation_id=call.correlation_id,
                    requested_ms=now_ms(),
                )
            )
            await self._bus.store(subjects.cancel(task), wish)
            self._router.hold(task)
            self._bus.publish(subjects.cancel_signal(task), wish)
            record = await self._receipt(task, watch.ended, began + self._cancel_wait_s)
        finally:
            await self._router.unwatch(watch)
        if record is not None and records.is_cancelled(record):
            self._router.silence(task)
        self._tell(task, call, reason, began, ended=record is not None)
        if record is None:
            return False, (await self.find(task, call)).view(task)
        return True, records.view_of_run(record)

    async def _receipt(self, task: str, ended: asyncio.Future[None], deadline: float) -> RunRecord | None:
        """The record of the ended task; None when it has not ended in time."""
        while (left := deadline - time.monotonic()) > 0:
            await asyncio.wait((ended,), timeout=min(RECORD_POLL_S, left))
            record = await self.record(task)
            if record is not None and records.is_final(record):
                return record
            if ended.done():
                await asyncio.sleep(min(RECORD_POLL_S, max(0.0, deadline - time.monotonic())))
        return None

    def _tell(self, task: str, call: Call, reason: str, began: float, *, ended: bool) -> None:
        narrate(
            log,
            "cancels a task" if ended else "stores a cancel; its receipt is still out",
            actor="gateway",
            action="cancel",
            target=task,
            task_id=task,
            correlation_id=call.correlation_id,
            identity=call.identity,
            channel=call.channel,
            reason=reason,
            duration_ms=round((time.monotonic() - began) * 1000, 1),
        )
