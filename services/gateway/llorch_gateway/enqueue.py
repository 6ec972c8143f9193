"""Into the queue: one publish whose ack is the admission, and what is said when there is no place.

The server counts the places, nobody here does. While places of a queue, or of a tenant's part of it, are promised to
clients who were sent away, the scheduler is asked before the publish; after a refusal it is asked when to come back. It
is asked briefly: without an answer the server's word stands, and Retry-After comes from the last load report.
"""

import asyncio
import hashlib
import logging
import uuid
from collections.abc import Iterator
from typing import Final

import msgspec

from llorch_gateway.call import Call
from llorch_gateway.core.refusals import queue_full, tenant_full
from llorch_gateway.failures import unavailable
from llorch_gateway.payloads import Payloads
from llorch_gateway.snapshot import Snapshot
from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus, BusError, Full, NoStream, Stored, SubjectFull, Unanswered
from llorch_shared.errors import Refused
from llorch_shared.readable import named_task
from llorch_shared.waiting import is_promised
from llorch_shared.wire.registry import APPOINTMENT_DECODER, Appointment, AppointmentRequest
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import TaskRequest
from llorch_shared.wire.version import Kind, version_headers

log = logging.getLogger(__name__)

PUBLISH_TIMEOUT_S: Final = 2.0
"""One try; a server under load acks within milliseconds."""
PUBLISH_WITHIN_S: Final = 12.0
"""All tries with one msg_id: longer than the election of a stream's leader (4 to 9 s, and no setting makes it shorter),
shorter than a client's patience."""
PAUSE_FIRST_S: Final = 0.05
PAUSE_MAX_S: Final = 0.5
APPOINT_TIMEOUT_S: Final = 0.25
"""The answer takes a millisecond; a client that is refused is not kept waiting for a scheduler that is away."""
REFUSALS_MAX: Final = 2
"""After the first refusal the scheduler may have seen a place that has just come free; it is believed once."""

_encode: Final = msgspec.json.Encoder().encode


class Enqueue:
    """`lane` travels with each task: the gateway process that relays its tokens."""

    def __init__(self, *, bus: Bus, snapshot: Snapshot, lane: str, share_bytes: int) -> None:
        self._bus: Final = bus
        self._snapshot: Final = snapshot
        self._lane: Final = lane
        self._payloads: Final = Payloads(bus, share_bytes=share_bytes)
        self._silent: Final[set[tuple[str, str]]] = set()
        """Queues (pool, class) that answered nobody for the whole bound, and nobody since."""

    async def store(self, request: TaskRequest, pool: PoolSpec, call: Call) -> tuple[Stored, int]:
        """Store the task. Returns what was stored and the number of tries: a duplicate after several may be ours, or
        another gateway's. Raises Refused when there is no place, OrchError when the queue cannot be reached."""
        await self._payloads.check(request)
        if self._promised(request, pool, call):
            appointment = await self._ask(request, pool, call)
            if appointment is not None and not appointment.admit:
                raise self._full(request, pool, call, appointment)
        for refusals in range(1, REFUSALS_MAX + 1):
            try:
                return await self._publish(request, pool, call)
            except SubjectFull:
                appointment = await self._ask(request, pool, call, tenant_refused=True)
                raise tenant_full(request, pool, call.tenant, self._snapshot.loads.get(pool.id), appointment) from None
            except Full:
                appointment = await self._ask(request, pool, call, refused=True)
                if appointment is None or not appointment.admit or refusals == REFUSALS_MAX:
                    raise self._full(request, pool, call, appointment) from None
        raise AssertionError("unreachable: the last refusal raises")

    def lane_of(self, call: Call) -> str:
        """This process's, or for who hears its tokens on the bus itself its own."""
        return subjects.bus_lane(call.tenant) if call.reads_on_bus else self._lane

    def _promised(self, request: TaskRequest, pool: PoolSpec, call: Call) -> bool:
        return is_promised(self._snapshot.loads.get(pool.id), request.priority, call.tenant)

    def _full(self, request: TaskRequest, pool: PoolSpec, call: Call, appointment: Appointment | None) -> Refused:
        load = self._snapshot.loads.get(pool.id)
        if appointment is not None and appointment.tenant_bound:
            return tenant_full(request, pool, call.tenant, load, appointment)
        return queue_full(request, pool, load, appointment)

    async def _publish(self, request: TaskRequest, pool: PoolSpec, call: Call) -> tuple[Stored, int]:
        """Publish, however often it takes within the bound: the msg_id makes repeats one task. A queue that is known to
        be silent (a server whose disk is full answers nobody) is asked once. A tenant that queues itself chooses its
        message ids: where that of this task belongs to something else, the task is published under the next."""
        queue = (pool.id, request.priority)
        request, payload = await self._payloads.fitted(request, call)
        subject = subjects.admission(pool.id, request.priority, call.tenant)
        headers = {
            subjects.CORRELATION_HEADER: call.correlation_id,
            subjects.LANE_HEADER: self.lane_of(call),
            **version_headers(Kind.ADMISSION, request),
        }
        within_s = 0.0 if queue in self._silent else PUBLISH_WITHIN_S
        deadline = asyncio.get_running_loop().time() + within_s
        msg_ids = message_ids(request.task_id, payload)
        pause, tries, msg_id = PAUSE_FIRST_S, 0, next(msg_ids)
        while True:
            tries += 1
            try:
                stored = await self._bus.store(
                    subject, payload, msg_id=msg_id, headers=headers, timeout_s=PUBLISH_TIMEOUT_S
                )
                self._silent.discard(queue)
                if not stored.duplicate or await self._is_known(stored, request.task_id):
                    return stored, tries
                log.warning("%s has the message id of another task: published again", request.task_id)
                msg_id = next(msg_ids)
                continue
            except Full:
                self._silent.discard(queue)
                raise
            except (NoStream, Unanswered) as error:
                if asyncio.get_running_loop().time() + pause > deadline:
                    self._silent.add(queue)
                    raise unavailable(
                        f"the queue of pool {pool.id} cannot be reached: {error}", pool_id=pool.id
                    ) from error
            await asyncio.sleep(pause)
            pause = min(PAUSE_MAX_S, 2 * pause)

    async def _is_known(self, stored: Stored, task_id: str) -> bool:
        """Whether what the server has under its message id is this task: as it waits, or as it was recorded before its
        message left the queue. Raises NoStream, Unanswered."""
        for message in await self._bus.replay(stored.stream, subjects.ALL_ADMISSIONS, from_seq=stored.seq, limit=1):
            if message.seq == stored.seq:
                return named_task(message.data) == task_id
        record = await self._bus.last(streams.RUN, subjects.run(task_id))
        return record is not None and not record.deleted

    async def _ask(
        self, request: TaskRequest, pool: PoolSpec, call: Call, *, refused: bool = False, tenant_refused: bool = False
    ) -> Appointment | None:
        """The scheduler's word on this task; None when it does not answer in time."""
        question = AppointmentRequest(
            task_id=request.task_id,
            pool_id=pool.id,
            priority=request.priority,
            tenant=call.tenant,
            refused=refused,
            tenant_refused=tenant_refused,
        )
        subject = subjects.appoint(subjects.shard_of(pool.id))
        try:
            answer = await self._bus.request(subject, _encode(question), timeout_s=APPOINT_TIMEOUT_S)
            return APPOINTMENT_DECODER.decode(answer.data)
        except BusError as error:
            log.debug("no appointment for %s: %s", request.task_id, error)
        except msgspec.MsgspecError as error:
            log.warning("the answer on %s is not an appointment: %s", subject, error)
        return None


def message_ids(task_id: str, payload: bytes) -> Iterator[str]:
    """The id of the task, by which it is one task whoever sends it. Who knows no more than that cannot guess the
    second, which the task has wherever it is sent again; what follows nobody can."""
    yield task_id
    yield f"{task_id}:{hashlib.sha256(payload).hexdigest()}"
    while True:
        yield f"{task_id}:{uuid.uuid4().hex}"
