"""Pulls the admission streams and turns each message into an event. Decides nothing about tasks.

A message stays unacknowledged while its task waits, so the number of stored messages is the queue's depth and the
server itself refuses what is over capacity. Acknowledging is asked for by the core, by reference.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec

from llorch_scheduler.core.events import AdmissionRef, BacklogRead, Event, TaskArrived
from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus, BusError, Consumer, Delivery, Message, NoStream, Unanswered
from llorch_shared.errors import ErrorBody, OrchError, invalid
from llorch_shared.guards import check_pool, check_request
from llorch_shared.identifiers import is_correlation_id, is_name, is_uuid
from llorch_shared.logs import narrate
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import REQUEST_DECODER, Priority, TaskRequest

log = logging.getLogger(__name__)

FETCH_MESSAGES: Final = 2000
"""A backlog is pulled in few round trips; what trickles in comes at once all the same."""
FETCH_WAIT_S: Final = 2.0
BACKLOG_WAIT_S: Final = 0.05
PAYLOAD_BYTES_MAX: Final = 1_000_000
"""What is over this cannot travel on inside a run record and a placement, which add some kilobytes."""
ACK_TRIES: Final = 3
_RETRY_S: Final = 0.2

Put = Callable[[Sequence[Event]], Awaitable[None]]


class _Named(msgspec.Struct, frozen=True):
    """The least a payload must say to be ended with an answer."""

    task_id: str = ""


_NAMED: Final = msgspec.json.Decoder(_Named)


def read_admission(
    message: Message, *, pool_id: str, pool: PoolSpec | None, priority: Priority, at_ms: int, stream: str
) -> TaskArrived | None:
    """The event of one admission message; None when not even its task id can be read. What fails a guard becomes an
    event with a problem. The subject says tenant and priority, whatever the payload says."""
    request: TaskRequest | None = None
    problem: ErrorBody | None = None
    try:
        if len(message.data) > PAYLOAD_BYTES_MAX:
            raise invalid(f"{len(message.data)} bytes; at most {PAYLOAD_BYTES_MAX} are taken")
        request = REQUEST_DECODER.decode(message.data)
        check_request(request)
        if pool is not None:
            check_pool(request, pool)
    except msgspec.DecodeError as error:
        problem = invalid(f"the request cannot be read: {error}").body
    except UnicodeDecodeError:
        problem = invalid("the request is not UTF-8").body
    except OrchError as error:
        problem = error.body
    task_id = request.task_id.lower() if request is not None else _task_id(message)
    if not task_id:
        return None
    if request is not None and request.task_id != task_id:
        request = msgspec.structs.replace(request, task_id=task_id)
    lane = message.headers.get(subjects.LANE_HEADER, "")
    correlation_id = message.headers.get(subjects.CORRELATION_HEADER, "")
    return TaskArrived(
        at_ms=at_ms,
        ref=AdmissionRef(stream, message.seq),
        task_id=task_id,
        pool_id=pool_id,
        priority=priority,
        tenant=subjects.last_token(message.subject),
        lane=lane if is_name(lane) else subjects.BUS_LANE,
        correlation_id=correlation_id if is_correlation_id(correlation_id) else task_id,
        channel="http" if is_name(lane) else "nats",
        admitted_ms=message.stored_ms or at_ms,
        request=request,
        problem=problem,
    )


def _task_id(message: Message) -> str:
    """From what can be read of the payload, else from the message id."""
    try:
        named = _NAMED.decode(message.data).task_id
    except (msgspec.DecodeError, UnicodeDecodeError):
        named = ""
    for text in (named, message.headers.get("Nats-Msg-Id", "")):
        if is_uuid(text):
            return text.lower()
    return ""


class Queue:
    """One admission stream: its pull loop, and how far it has come."""

    def __init__(self, pool: PoolSpec | None, pool_id: str, priority: Priority) -> None:
        self.pool_id: Final = pool_id
        self.priority: Final = priority
        self.stream: Final = streams.admission_stream(pool_id, priority)
        self.pool = pool
        self.pulled_seq = 0
        self.advanced: Final = asyncio.Condition()
        self.backlog_read = False
        self.held: Final[dict[int, Delivery]] = {}
        """What is not acknowledged, by its sequence in the stream."""


class Admissions:
    """All queues of a term, and the deliveries that wait for their acknowledgement."""

    def __init__(self, bus: Bus, *, put: Put, now_ms: Callable[[], int], going: Callable[[], bool]) -> None:
        self._bus: Final = bus
        self._going: Final = going
        self._put: Final = put
        self._now_ms: Final = now_ms
        self.queues: Final[dict[str, Queue]] = {}

    async def pull(self, queue: Queue) -> None:
        """Pull one queue until the term is over. Whatever the bus does, this goes on."""
        while self._going():
            try:
                consumer = await self._bus.consumer(queue.stream, streams.SCHEDULER_DURABLE)
                try:
                    await consumer.reset()
                    await self._pull_on(queue, consumer)
                finally:
                    await consumer.close()
            except NoStream as error:
                if queue.pool is None:
                    await self._backlog_is_read(queue)
                log.warning("the queue %s is not there, trying again: %s", queue.stream, error)
            except BusError as error:
                log.warning("the queue %s cannot be pulled, trying again: %s", queue.stream, error)
            await asyncio.sleep(_RETRY_S)

    async def _pull_on(self, queue: Queue, consumer: Consumer) -> None:
        """The server sends the next batch while this one is read."""
        backlog = await self._bus.stream_state(queue.stream)
        fetching = asyncio.create_task(consumer.fetch(FETCH_MESSAGES, 0), name=f"fetch from {queue.stream}")
        try:
            while self._going():
                if not queue.backlog_read and (backlog.messages == 0 or queue.pulled_seq >= backlog.last_seq):
                    await self._backlog_is_read(queue, backlog.last_seq)
                deliveries = await fetching
                wait_s = FETCH_WAIT_S if queue.backlog_read else BACKLOG_WAIT_S
                fetching = asyncio.create_task(consumer.fetch(FETCH_MESSAGES, wait_s), name=fetching.get_name())
                if deliveries:
                    await asyncio.sleep(0)
                    await self._arrived(queue, deliveries)
                    async with queue.advanced:
                        queue.pulled_seq = max(queue.pulled_seq, deliveries[-1].message.seq)
                        queue.advanced.notify_all()
                elif not queue.backlog_read and await self._holds_all(queue):
                    await self._backlog_is_read(queue, backlog.last_seq)
        finally:
            fetching.cancel()
            await asyncio.wait({fetching})

    async def _holds_all(self, queue: Queue) -> bool:
        """The end of the backlog may have gone meanwhile; a server that is just slow has more than what is held."""
        return (await self._bus.stream_state(queue.stream)).messages <= len(queue.held)

    async def _backlog_is_read(self, queue: Queue, last_seq: int = 0) -> None:
        if queue.backlog_read:
            return
        queue.backlog_read = True
        read = BacklogRead(at_ms=self._now_ms(), pool_id=queue.pool_id, priority=queue.priority, last_seq=last_seq)
        await self._put((read,))

    async def _arrived(self, queue: Queue, deliveries: Sequence[Delivery]) -> None:
        events: list[Event] = []
        for delivery in deliveries:
            event = read_admission(
                delivery.message,
                pool_id=queue.pool_id,
                pool=queue.pool,
                priority=queue.priority,
                at_ms=self._now_ms(),
                stream=queue.stream,
            )
            if event is None:
                await self._discard(queue, delivery)
                continue
            queue.held[event.ref.seq] = delivery
            delivery.drop_payload()
            events.append(event)
        await self._put(events)

    async def _discard(self, queue: Queue, delivery: Delivery) -> None:
        """Nobody can be told about a task without an id; it must not hold a place in the queue either."""
        narrate(
            log,
            f"A message in {queue.stream} names no task and is dropped",
            actor="scheduler",
            action="reject",
            target=queue.stream,
            level=logging.WARNING,
            pool_id=queue.pool_id,
            stream_seq=delivery.message.seq,
        )
        await self._confirm(delivery)

    async def ack(self, ref: AdmissionRef) -> None:
        """Give the place in the queue back. When the server does not confirm, the message comes again later and is
        recognised by its run record."""
        queue = self.queues[ref.stream]
        delivery = queue.held.get(ref.seq)
        if delivery is not None:
            await self._confirm(delivery)
            if queue.held.get(ref.seq) is delivery:
                del queue.held[ref.seq]

    async def _confirm(self, delivery: Delivery) -> None:
        for attempt in range(1, ACK_TRIES + 1):
            try:
                await delivery.ack()
                return
            except Unanswered as error:
                if attempt == ACK_TRIES:
                    log.warning("the ack of %s was not confirmed: %s", delivery.message.subject, error)
            except BusError as error:
                log.warning("%s could not be acknowledged: %s", delivery.message.subject, error)
                return

    async def caught_up(self, timeout_s: float) -> bool:
        """Wait until everything stored now has been pulled; false when that takes longer than `timeout_s`."""

        async def reach(queue: Queue) -> None:
            try:
                state = await self._bus.stream_state(queue.stream)
            except NoStream:
                return
            async with queue.advanced:
                await queue.advanced.wait_for(lambda: queue.pulled_seq >= state.last_seq or state.messages == 0)

        try:
            async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as tasks:
                for queue in self.queues.values():
                    tasks.create_task(reach(queue), name=f"catch up with {queue.stream}")
        except TimeoutError:
            return False
        return True
