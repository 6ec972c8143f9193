"""Where frames go: one wildcard subscription for the tasks admitted here, one of its own for any other task read here.

Channels live as long as somebody reads them; one made at admission waits `KEEP_S` for its first reader. A lane that
nobody reads costs one dict lookup per message.
"""

import asyncio
import logging
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from llorch_gateway.relay.channel import Channel, Seat
from llorch_shared import subjects
from llorch_shared.bus.port import Bus, Message, Subscription
from llorch_shared.wire.frames import Cursor

log = logging.getLogger(__name__)

KEEP_S: Final = 60.0
"""How long frames of a task that nobody reads yet are kept here. Later readers read the stored stream."""
HOLD_S: Final = 30.0
"""Longest time tokens are held back for a cancel that neither wins nor loses."""
PULSE_S: Final = 1.0
CHANNELS_WITHOUT_READER_MAX: Final = 16_384


@dataclass(frozen=True, slots=True)
class Watch:
    channel: Channel
    ended: asyncio.Future[None]


class Router:
    """`lane` names this process in token subjects."""

    def __init__(
        self, bus: Bus, *, buffer_bytes: int, heartbeat_s: float, stall_s: float = 30.0, lane: str = ""
    ) -> None:
        self.lane: Final = lane or f"gw-{secrets.token_hex(4)}"
        self._bus: Final = bus
        self._buffer_bytes: Final = buffer_bytes
        self._heartbeat_s: Final = heartbeat_s
        self._stall_s: Final = stall_s
        self._skip: Final = len(subjects.tokens_of_lane(self.lane)) - 1
        self._channels: dict[bytes, Channel] = {}
        self._foreign: dict[str, Channel] = {}
        self._tails: dict[str, Subscription] = {}
        self._joining: dict[str, asyncio.Lock] = {}
        self._unread: dict[str, float] = {}
        self._held: dict[str, float] = {}
        self._subscriptions: list[Subscription] = []
        self.seats: set[Seat] = set()

    async def start(self) -> None:
        """Raises BusError; may be called again then."""
        await self._leave()
        self._subscriptions.append(await self._bus.tail(subjects.tokens_of_lane(self.lane), self._frame))
        self._subscriptions.append(await self._bus.subscribe(subjects.ALL_CANCEL_SIGNALS, self._cancel_signal))
        self._bus.on_disconnect(self._interrupt)
        self._bus.on_reconnect(self._resume)

    async def close(self) -> None:
        await self._leave()
        for tail in self._tails.values():
            await tail.close()
        self._tails.clear()

    async def _leave(self) -> None:
        for subscription in self._subscriptions:
            await subscription.close()
        self._subscriptions.clear()

    # Admission

    def expect(self, task: str) -> None:
        """A task is about to be admitted with this lane: keep its frames for its first reader."""
        key = task.encode()
        if key in self._channels:
            return
        if len(self._unread) >= CHANNELS_WITHOUT_READER_MAX:
            self._drop_unread(next(iter(self._unread)))
        now = asyncio.get_running_loop().time()
        self._channels[key] = Channel(task, now=now, buffer_bytes=self._buffer_bytes, keep=self._bus.connected)
        self._unread[task] = now

    def unexpect(self, task: str) -> None:
        """It was not admitted after all."""
        self._drop_unread(task)

    def is_fresh(self, task: str) -> bool:
        """Whether every frame of this task since its admission is in hand here: a reader needs no lookup."""
        channel = self._channels.get(task.encode())
        return channel is not None and channel.kept is not None

    # Readers

    async def join(self, task: str, cursor: Cursor | None, *, local: bool) -> Seat:
        """A seat at the task's channel; its live frames are in effect when this returns. `local`: admitted with this
        process's lane. Raises BusError when the bus cannot be asked for the frames of another lane."""
        channel = await self._channel(task, local=local)
        now = asyncio.get_running_loop().time()
        self._unread.pop(task, None)
        if task in self._held:
            channel.hold()
        seat = channel.sit(cursor, now=now)
        self.seats.add(seat)
        return seat

    async def watch(self, task: str, *, local: bool) -> "Watch":
        """Follow a task to its end without reading it."""
        channel = await self._channel(task, local=local)
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if channel.ended:
            ended.set_result(None)
        else:
            channel.waiters.append(ended)
        return Watch(channel, ended)

    async def unwatch(self, watch: "Watch") -> None:
        if watch.ended in watch.channel.waiters:
            watch.channel.waiters.remove(watch.ended)
        await self._let_go(watch.channel)

    async def _channel(self, task: str, *, local: bool) -> Channel:
        channel = self._channels.get(task.encode())
        if channel is not None:
            return channel
        now = asyncio.get_running_loop().time()
        if not local:
            return await self._join_foreign(task, now)
        channel = Channel(task, now=now, buffer_bytes=self._buffer_bytes, keep=False)
        self._channels[task.encode()] = channel
        return channel

    async def _join_foreign(self, task: str, now: float) -> Channel:
        lock = self._joining.setdefault(task, asyncio.Lock())
        try:
            async with lock:
                channel = self._foreign.get(task)
                if channel is None:
                    channel = Channel(task, now=now, buffer_bytes=self._buffer_bytes, keep=False)
                    handler = channel.frame
                    self._tails[task] = await self._bus.tail(
                        subjects.tokens_of_task(task), lambda _subject, data: handler(data)
                    )
                    self._foreign[task] = channel
                return channel
        finally:
            if not lock.locked():
                self._joining.pop(task, None)

    async def leave(self, seat: Seat) -> None:
        self.seats.discard(seat)
        seat.channel.leave(seat)
        await self._let_go(seat.channel)

    async def _let_go(self, channel: Channel) -> None:
        task = channel.task
        if channel.seats or channel.waiters or task in self._unread:
            return
        if self._channels.get(task.encode()) is channel:
            del self._channels[task.encode()]
        elif self._foreign.get(task) is channel:
            del self._foreign[task]
            tail = self._tails.pop(task, None)
            if tail is not None:
                await tail.close()

    def reads(self, task: str) -> bool:
        return any(channel.seats for channel in self.channels_of(task))

    def channels_of(self, task: str) -> Iterator[Channel]:
        for channel in (self._channels.get(task.encode()), self._foreign.get(task)):
            if channel is not None:
                yield channel

    # Signals

    def hold(self, task: str) -> None:
        channels = [channel for channel in self.channels_of(task) if not channel.ended]
        for channel in channels:
            channel.hold()
        if channels:
            self._held[task] = asyncio.get_running_loop().time()

    def silence(self, task: str) -> None:
        for channel in self.channels_of(task):
            channel.silence()

    def _frame(self, subject: bytes, data: bytes) -> None:
        channel = self._channels.get(subject[self._skip :])
        if channel is not None:
            channel.frame(data)

    def _cancel_signal(self, message: Message) -> None:
        self.hold(subjects.last_token(message.subject))

    def _interrupt(self) -> None:
        for channel in (*self._channels.values(), *self._foreign.values()):
            channel.kept = None

    async def _resume(self) -> None:
        for channel in (*self._channels.values(), *self._foreign.values()):
            channel.interrupt()

    # Time

    async def pulse(self) -> None:
        """Every second: wake readers that owe a heartbeat or whose task has gone quiet, cut off who takes nothing,
        and drop what nobody reads."""
        while True:
            await asyncio.sleep(PULSE_S)
            self.tick(asyncio.get_running_loop().time())

    def tick(self, now: float) -> None:
        for seat in self.seats:
            seat.tick(now, heartbeat_s=self._heartbeat_s, stall_s=self._stall_s)
        for task in [task for task, since in self._unread.items() if now - since >= KEEP_S]:
            self._drop_unread(task)
        for task in [task for task, since in self._held.items() if now - since >= HOLD_S]:
            del self._held[task]
            for channel in self.channels_of(task):
                channel.release()

    def _drop_unread(self, task: str) -> None:
        if self._unread.pop(task, None) is None:
            return
        channel = self._channels.get(task.encode())
        if channel is not None and not channel.seats and not channel.waiters:
            del self._channels[task.encode()]
