"""Token streams as a client asks for them: who may have a seat, what it is told first, and what its leaving means."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from llorch_gateway.call import Call
from llorch_gateway.core import record as records
from llorch_gateway.failures import unavailable
from llorch_gateway.relay.channel import Seat
from llorch_gateway.relay.log_life import LogLife
from llorch_gateway.relay.notices import Look
from llorch_gateway.relay.presence import Presence
from llorch_gateway.relay.router import Router
from llorch_gateway.relay.stream import Replays, Stream
from llorch_gateway.session_reservations import SessionReservations
from llorch_gateway.tasks import Tasks
from llorch_gateway.waits import Waits
from llorch_shared import subjects
from llorch_shared.bus.port import Bus
from llorch_shared.logs import narrate
from llorch_shared.metrics import Metrics
from llorch_shared.token_mark import first_seq
from llorch_shared.wire.frames import Cursor
from llorch_shared.wire.session import SessionRemaining

log = logging.getLogger(__name__)

NEAR_S: Final = (2.0, 10.0)
"""A reader whose connection broke is back within a second or within seconds: what it misses is looked for in the last
frame, then among the newest. The server looks at each message in between, whoever's it is, so the whole stream is read
slowly when hundreds come at once."""
REPLAYS_WHOLE_MAX: Final = 1
"""Of those that read from the beginning: the server needs 30 ms where the stream holds 200,000 frames, and answers one
after the other. Many at once would let the others wait."""
LAST_WORDS_S: Final = 0.1
"""Between the end of the streams and the end of their connections: an HTTP/2 client that reads both at once takes the
end of the connection for a failure of the stream."""
FIRST_LINE: Final = b"retry: 1000\n\n"
"""How long a browser waits before it comes back by itself, milliseconds."""


@dataclass(slots=True)
class Opened:
    seat: Seat
    task: str
    look: Look
    """How the task stands while it waits."""
    left: SessionRemaining | None = None
    """Of its session's budgets."""


class Streams:
    """`streams_max` bounds open streams of this process."""

    def __init__(
        self,
        *,
        bus: Bus,
        router: Router,
        log_life: LogLife,
        tasks: Tasks,
        reservations: SessionReservations,
        presence: Presence,
        metrics: Metrics,
        streams_max: int,
        waits: Waits,
        microbatch: bool = False,
    ) -> None:
        self._bus: Final = bus
        self._router: Final = router
        self._log_life: Final = log_life
        self._tasks: Final = tasks
        self._reservations: Final = reservations
        self._presence: Final = presence
        self._streams_max: Final = streams_max
        self._waits: Final = waits
        self._microbatch: Final = microbatch
        self._open_gauge: Final = metrics.gauge("sse_streams_open")
        self._drops: Final = metrics.counter("sse_backpressure_drops_total")
        self._replays: Final = Replays(bus, whole=REPLAYS_WHOLE_MAX)
        self._running: set[asyncio.Task[None]] = set()
        self._stopping = False

    def check_room(self, call: Call) -> None:
        """Before a task is admitted to be read at once. Raises OrchError when no stream more is served here, or none
        for this caller."""
        self._check_seats()
        if call.streams is not None:
            call.streams.take()
            call.streams.give_back()

    def _check_seats(self) -> None:
        if len(self._router.seats) >= self._streams_max:
            raise unavailable(f"this gateway serves {self._streams_max} streams already")

    def abandon(self, task: str, call: Call) -> None:
        """Who admitted this task to read it at once does not."""
        self._presence.left(task, call)

    async def open(self, task: str, cursor: Cursor | None, call: Call) -> Opened | None:
        """A seat for a reader, which `serve` gives back; None when its cursor is at the end already. Raises OrchError,
        BusError."""
        if call.streams is None:
            return await self._open(task, cursor, call)
        call.streams.take()
        opened = None
        try:
            opened = await self._open(task, cursor, call)
        finally:
            if opened is None:
                call.streams.give_back()
        return opened

    async def _open(self, task: str, cursor: Cursor | None, call: Call) -> Opened | None:
        self._check_seats()
        if cursor is None and self._tasks.is_fresh(task, call):
            seat = await self._router.join(task, None, local=True)
            return Opened(seat, task, self._waits.of(task), self._reservations.remaining(task, None))
        found = await self._tasks.find(task, call)
        record = found.record
        if record is not None and records.has_all(record, cursor):
            return None
        seat = await self._router.join(task, cursor, local=found.local)
        if record is not None:
            seat.subject = subjects.tokens(record.lane, task)
            seat.first_seq = seat.replay_from = first_seq(record.token_log, self._log_life.now)
            if records.is_final(record):
                seat.check_due = True
                if records.is_cancelled(record):
                    seat.reader.silence()
            elif cursor is not None and cursor.attempt:
                seat.returns(record.attempt, NEAR_S)
        return Opened(seat, task, self._waits.of(task, found), self._reservations.remaining(task, record))

    async def serve(
        self,
        opened: Opened,
        call: Call,
        *,
        start: Callable[[], Awaitable[None]],
        write: Callable[[bytes], Awaitable[None]],
        gone: Callable[[], Awaitable[None]],
        news: bool = False,
    ) -> None:
        """Pump one seat until its stream ends, `gone` returns, the client takes nothing for too long, or this process
        stops. `news`: while its task waits, the client is told how it stands."""
        seat = opened.seat
        if news:
            seat.notices = self._waits.notices(opened.look)
        departure = asyncio.ensure_future(gone())
        departure.add_done_callback(lambda done: seat.close("client"))
        if self._stopping:
            seat.close("stopping")
        current = seat.pump = asyncio.current_task()
        assert current is not None
        self._running.add(current)
        self._open_gauge.inc()
        self._narrate("opens a stream", "stream-start", opened, call, level=logging.DEBUG)
        self._presence.came(opened.task)
        try:
            await start()
            await Stream(seat, bus=self._bus, send=write, replays=self._replays, microbatch=self._microbatch).run(
                FIRST_LINE
            )
        except asyncio.CancelledError:
            if seat.closed != "stalled":
                raise
            current.uncancel()
        finally:
            departure.cancel()
            self._running.discard(current)
            if call.streams is not None:
                call.streams.give_back()
            self._open_gauge.dec()
            if seat.reader.metrics_dropped:
                self._drops.inc(seat.reader.metrics_dropped)
            await self._router.leave(seat)
            self._narrate("ends a stream", "stream-end", opened, call)
            if not seat.reader.done and seat.closed != "stopping":
                self._presence.left(opened.task, call)

    async def stop(self, within_s: float) -> None:
        """End every open stream with a word about coming back; cut those whose clients do not take it in time."""
        self._stopping = True
        for seat in tuple(self._router.seats):
            seat.close("stopping")
        if self._running:
            _, late = await asyncio.wait(tuple(self._running), timeout=within_s)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=within_s)
            await asyncio.sleep(LAST_WORDS_S)

    def _narrate(self, human: str, action: str, opened: Opened, call: Call, *, level: int = logging.INFO) -> None:
        """One line at INFO per stream: its end, which says where it got to."""
        if not log.isEnabledFor(level):
            return
        narrate(
            log,
            human,
            actor="gateway",
            action=action,
            target=opened.task,
            level=level,
            task_id=opened.task,
            correlation_id=call.correlation_id,
            identity=call.identity,
            reason=opened.seat.closed,
            next_index=opened.seat.reader.next_index,
        )
