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

from llorch_scheduler.admission_reading import Reading, SessionSince, read_admission
from llorch_scheduler.core.events import AdmissionRef, BacklogRead, Event
from llorch_shared import streams
from llorch_shared.bus.port import Bus, BusError, Consumer, Delivery, Message, NoStream, Unanswered
from llorch_shared.dead_letters import DeadLetters
from llorch_shared.models import Models
from llorch_shared.wire.dead import What
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Priority

log = logging.getLogger(__name__)

FETCH_MESSAGES: Final = 2000
"""A backlog is pulled in few round trips; what trickles in comes at once all the same."""
FETCH_WAIT_S: Final = 2.0
FEW: Final = 16
"""Messages that are handed on before more are asked for: their tasks wait for nothing else."""
BACKLOG_WAIT_S: Final = 0.05
LOOK_EVERY_S: Final = 5.0
"""How often it is asked whether the oldest stored message is held here."""
AGAIN_S: Final = 0.05
"""After a look by which something stored was not held: it is on its way, is being acknowledged, or got lost."""
ACK_TRIES: Final = 3
_RETRY_S: Final = 0.2

Put = Callable[[Sequence[Event]], Awaitable[None]]


class Queue:
    """One admission stream: its pull loop, and how far it has come."""

    def __init__(self, pool: PoolSpec | None, pool_id: str, priority: Priority) -> None:
        self.pool_id: Final = pool_id
        self.priority: Final = priority
        self.stream: Final = streams.admission_stream(pool_id, priority)
        self.pool = pool
        self.pulled_seq = 0
        self.backlog_read = False
        self.held: Final[dict[int, Delivery]] = {}
        """What is not acknowledged, by its sequence in the stream."""
        self.leaving: Final[set[int]] = set()
        """What of it is being acknowledged: the server may have removed it already."""
        self.witnesses: Final[list[set[int]]] = []
        """Each is told what arrives."""
        self.stored_seq = 0
        """The last message at the last look."""
        self.missing_seq = 0
        """The oldest message, when it was there at the look before and is not held; 0 when all is well."""
        self.unset: Final[dict[int, bool]] = {}
        """Poison whose letter is not stored yet, by its sequence: true when it is to be acknowledged then."""


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
                if not deliveries and not queue.backlog_read and await self._holds_all(queue):
                    await self._backlog_is_read(queue, backlog.last_seq)
                if queue.backlog_read and time.monotonic() >= look_at:
                    look_at = time.monotonic() + LOOK_EVERY_S
                    if await self._misses_the_oldest(queue):
                        log.warning(
                            "message %d of %s reached nobody, all is read again", queue.missing_seq, queue.stream
                        )
                        return
        finally:
            fetching.cancel()
            await asyncio.wait({fetching})

    async def _misses_the_oldest(self, queue: Queue) -> bool:
        """Found at two looks in a row: in a cluster a delivery, or the removal after an ack, may get lost between the
        servers while the connection from here stands. The server would deliver again after the hour of `ack_wait`."""
        missed, queue.missing_seq = queue.missing_seq, 0
        try:
            state = await self._bus.stream_state(queue.stream)
        except BusError:
            return False
        if state.messages and state.first_seq <= queue.stored_seq and state.first_seq not in queue.held:
            queue.missing_seq = state.first_seq
        queue.stored_seq = state.last_seq
        return bool(queue.missing_seq) and queue.missing_seq == missed

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
        """Poison is set aside once its event, too, is handed over: what `put` does not take is read again."""
        events: list[Event] = []
        poison: list[tuple[_Poison, bool]] = []
        for delivery in deliveries:
            message = delivery.message
            queue.held[message.seq] = delivery
            for seen in queue.witnesses:
                seen.add(message.seq)
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
        """Wait until everything stored now is held and handed on; false when that takes longer than `timeout_s`. It is
        counted, because a delivery that got lost is missing whatever was pulled after it. What is being acknowledged
        counts only where the last that is stored was pulled: else it would stand for one that is on its way."""

        async def reach(queue: Queue) -> None:
            while True:
                if await self._has_come(queue):
                    return
                await asyncio.sleep(AGAIN_S)

        try:
            async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as tasks:
                for queue in self.queues.values():
                    tasks.create_task(reach(queue), name=f"catch up with {queue.stream}")
        except TimeoutError:
            return False
        return True

    async def _has_come(self, queue: Queue) -> bool:
        seen = set(queue.held)
        queue.witnesses.append(seen)
        try:
            state = await self._bus.stream_state(queue.stream)
            handed_on = min(state.last_seq, queue.pulled_seq)
            certain = seen.intersection(queue.held) - queue.leaving
            if state.messages <= sum(seq <= handed_on for seq in certain):
                return True
            if queue.pulled_seq < state.last_seq:
                await asyncio.sleep(AGAIN_S)
            return queue.pulled_seq >= state.last_seq and state.messages <= sum(seq <= state.last_seq for seq in seen)
        except NoStream:
            return True
        finally:
            queue.witnesses.remove(seen)
