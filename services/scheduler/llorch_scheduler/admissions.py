"""Pulls the admission streams and turns each message into an event. Decides nothing about tasks.

A message stays unacknowledged while its task waits, so the number of stored messages is the queue's depth and the
server itself refuses what is over capacity. Acknowledging is asked for by the core, by reference.

Poison is set aside beside the pulling: its queue goes on even while letters cannot be stored. It keeps its place until
its letter stands.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

from llorch_scheduler.admission_queue import Queue
from llorch_scheduler.admission_reading import Reading, SessionSince, read_admission
from llorch_scheduler.core.events import AdmissionRef, BacklogRead, Event
from llorch_shared import streams
from llorch_shared.bus.port import Bus, BusError, Consumer, Delivery, Message, NoStream, Unanswered
from llorch_shared.dead_letters import DeadLetters
from llorch_shared.models import Models
from llorch_shared.wire.dead import What

log = logging.getLogger(__name__)

FETCH_MESSAGES: Final = 2000
"""A backlog is pulled in few round trips; what trickles in comes at once all the same."""
FETCH_WAIT_S: Final = 2.0
FEW: Final = 16
"""Messages that are handed on before more are asked for: their tasks wait for nothing else."""
BACKLOG_WAIT_S: Final = 0.05
LOOK_EVERY_S: Final = 5.0
"""How often it is asked whether the oldest stored message is held here."""
ACK_TRIES: Final = 3
_RETRY_S: Final = 0.2

Put = Callable[[Sequence[Event]], Awaitable[None]]


class _Poison(NamedTuple):
    queue: Queue
    message: Message
    problem: Exception
    task_id: str


class Admissions:
    """All queues of a term, and the deliveries that wait for their acknowledgement."""

    def __init__(
        self,
        bus: Bus,
        dead: DeadLetters,
        *,
        put: Put,
        now_ms: Callable[[], int],
        going: Callable[[], bool],
        had_model: Callable[[str, str, int], bool] = lambda *_: False,
        models: Models | None = None,
        session_since: SessionSince = lambda *_: None,
    ) -> None:
        """`had_model`: whether a pool had a model, which it has no longer, at a time (Unix milliseconds). `models`:
        what the catalog says; None says nothing."""
        self._models: Final = models or Models()
        self._session_since: Final = session_since
        self._had_model: Final = had_model
        self._bus: Final = bus
        self._dead: Final = dead
        self._poison: Final[asyncio.Queue[_Poison]] = asyncio.Queue()
        """Bounded as what is held: by the capacity of the streams."""
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
        look_at = time.monotonic() + LOOK_EVERY_S
        fetching = asyncio.create_task(consumer.fetch(FETCH_MESSAGES, 0), name=f"fetch from {queue.stream}")
        try:
            while self._going():
                if not queue.backlog_read and (backlog.messages == 0 or queue.pulled_seq >= backlog.last_seq):
                    await self._backlog_is_read(queue, backlog.last_seq)
                deliveries = await fetching
                wait_s = FETCH_WAIT_S if queue.backlog_read else BACKLOG_WAIT_S
                few = len(deliveries) <= FEW
                if few:
                    await self._arrived(queue, deliveries)
                fetching = asyncio.create_task(consumer.fetch(FETCH_MESSAGES, wait_s), name=fetching.get_name())
                if not few:
                    await asyncio.sleep(0)
                    await self._arrived(queue, deliveries)
                if not deliveries and not queue.backlog_read and await queue.holds_all(self._bus):
                    await self._backlog_is_read(queue, backlog.last_seq)
                if queue.backlog_read and time.monotonic() >= look_at:
                    look_at = time.monotonic() + LOOK_EVERY_S
                    if await queue.misses_the_oldest(self._bus):
                        log.warning(
                            "message %d of %s reached nobody, all is read again", queue.missing_seq, queue.stream
                        )
                        return
        finally:
            fetching.cancel()
            await asyncio.wait({fetching})

    async def _backlog_is_read(self, queue: Queue, last_seq: int = 0) -> None:
        if queue.backlog_read:
            return
        queue.backlog_read = True
        read = BacklogRead(at_ms=self._now_ms(), pool_id=queue.pool_id, priority=queue.priority, last_seq=last_seq)
        await self._put((read,))

    async def _arrived(self, queue: Queue, deliveries: Sequence[Delivery]) -> None:
        """Poison is set aside once its event, too, is handed over: what `put` does not take is read again."""
        events: list[Event] = []
        poison: list[tuple[_Poison, bool]] = []
        for delivery in deliveries:
            message = delivery.message
            queue.hold(delivery)
            if message.seq in queue.unset:
                continue
            reading = self._read(queue, message)
            if reading.poison is not None:
                task_id = reading.event.task_id if reading.event is not None else ""
                poison.append((_Poison(queue, message, reading.poison, task_id), reading.event is None))
            if reading.event is not None:
                events.append(reading.event)
            delivery.drop_payload()
        await self._put(events)
        for each, acknowledged in poison:
            if each.message.seq not in queue.unset:
                queue.unset[each.message.seq] = acknowledged
                self._poison.put_nowait(each)
        if deliveries:
            queue.pulled_seq = max(queue.pulled_seq, deliveries[-1].message.seq)

    def _read(self, queue: Queue, message: Message) -> Reading:
        try:
            return read_admission(
                message,
                pool_id=queue.pool_id,
                pool=queue.pool,
                priority=queue.priority,
                at_ms=self._now_ms(),
                stream=queue.stream,
                had_model=partial(self._had_model, queue.pool_id),
                models=self._models,
                session_since=self._session_since,
            )
        except Exception as error:
            log.exception("reading message %d of %s failed in a way nobody foresaw", message.seq, queue.stream)
            return Reading(None, error)

    async def set_aside(self) -> None:
        """Store letters, one after the other, until the term is over."""
        while self._going():
            poison = await self._poison.get()
            queue, seq = poison.queue, poison.message.seq
            letter = self._dead.letter(
                What.ADMISSION, queue.pool_id, queue.stream, poison.message, poison.problem, task_id=poison.task_id
            )
            await self._dead.store(letter, poison.message.stored_ms)
            if queue.unset.pop(seq):
                await self.ack(AdmissionRef(queue.stream, seq))
            self._poison.task_done()

    async def give_up(self, ref: AdmissionRef, problem: Exception) -> None:
        """Have a message set aside whose task turned out to be impossible; it is acknowledged after that. What was
        dropped of it is read again. Raises BusError."""
        queue = self.queues[ref.stream]
        delivery = queue.held.get(ref.seq)
        if delivery is None or ref.seq in queue.unset:
            return
        subject = delivery.message.subject
        for message in await self._bus.replay(ref.stream, subject, from_seq=ref.seq, limit=1):
            if message.seq == ref.seq:
                queue.unset[ref.seq] = True
                self._poison.put_nowait(_Poison(queue, message, problem, ""))

    async def all_set_aside(self) -> None:
        """Every letter that was due is stored, and its original acknowledged."""
        await self._poison.join()

    async def ack(self, ref: AdmissionRef) -> None:
        """Give the place in the queue back. When the server does not confirm, the message comes again later and is
        recognised by its run record."""
        queue = self.queues[ref.stream]
        if ref.seq in queue.unset:
            queue.unset[ref.seq] = True
            return
        delivery = queue.held.get(ref.seq)
        if delivery is not None:
            queue.leaving.add(ref.seq)
            try:
                await self._confirm(delivery)
                if queue.held.get(ref.seq) is delivery:
                    del queue.held[ref.seq]
            finally:
                queue.leaving.discard(ref.seq)

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
        """Wait until everything stored now is held and handed on; false when that takes longer than `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as tasks:
                for queue in self.queues.values():
                    tasks.create_task(queue.caught_up(self._bus), name=f"catch up with {queue.stream}")
        except TimeoutError:
            return False
        return True
