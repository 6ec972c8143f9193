"""The server of the in-memory bus: who listens, which streams stand, and what happens when it is killed.

Messages reach handlers in the next loop iteration, in order, as from a socket.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from llorch_shared.bus.memory_streams import MemoryDurable, MemoryStream, matches, transform
from llorch_shared.bus.port import BusError, Handler, Message, NoStream
from llorch_shared.bus.topology import Topology, changed

log = logging.getLogger(__name__)


class Attached(Protocol):
    """A connection, as the server sees it."""

    @property
    def connected(self) -> bool: ...

    def break_connection(self) -> None: ...

    def restore_connection(self) -> None: ...


class Interest:
    """One subscription."""

    def __init__(self, server: "MemoryServer", bus: Attached, pattern: str, handler: Handler, queue: str) -> None:
        self._server: Final = server
        self.bus: Final = bus
        self.pattern: Final = pattern
        self.handler: Final = handler
        self.queue: Final = queue
        self.closed = False

    async def close(self) -> None:
        self.closed = True
        if self in self._server.interests:
            self._server.interests.remove(self)

    def deliver(self, message: Message) -> None:
        if self.closed or not self.bus.connected:
            return
        try:
            self.handler(message)
        except Exception:
            log.exception("the handler of a message on %s failed", message.subject)


class MemoryServer:
    """Streams, durables and who listens. `answers_lost` makes that many stores succeed without their ack arriving."""

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock: Final = clock
        self.streams: Final[dict[str, MemoryStream]] = {}
        self.interests: Final[list[Interest]] = []
        self.buses: Final[list[Attached]] = []
        self.running = True
        self.answers_lost = 0
        self._changed: asyncio.Event | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._random: Final = random.Random(0)  # noqa: S311  (which member of a queue group answers)

    def now(self) -> float:
        return self._clock() if self._clock is not None else asyncio.get_running_loop().time()

    def tick(self) -> None:
        """Let everything that is due happen: expiries, redeliveries."""
        for stream in self.streams.values():
            for marker in stream.expire(self.now()):
                self._republish(stream, marker)
        self.wake()

    def wake(self) -> None:
        """Somebody waiting for messages may look again; then sleep until the next thing is due."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._clock is None:
            streams, now = self.streams.values(), self.now()
            dues = [due for stream in streams if (due := stream.next_expiry())]
            dues += [due for stream in streams for one in stream.durables.values() if (due := one.next_due()) > now]
            if dues:
                self._timer = asyncio.get_running_loop().call_at(min(dues) + 0.001, self.tick)

    def changed(self) -> asyncio.Event:
        """Set at the next change of any stream or connection."""
        if self._changed is None:
            self._changed = asyncio.Event()
        return self._changed

    def kill(self) -> None:
        """kill -9: every connection breaks; streams in memory lose their messages and their configuration."""
        self.running = False
        for name in [name for name, stream in self.streams.items() if stream.config.get("storage") == "memory"]:
            del self.streams[name]
        for bus in tuple(self.buses):
            bus.break_connection()

    def start(self) -> None:
        self.running = True
        for stream in self.streams.values():
            stream.restart(self.now())
        for bus in tuple(self.buses):
            bus.restore_connection()

    def stream_for(self, subject: str) -> MemoryStream | None:
        return next((stream for stream in self.streams.values() if stream.takes(subject)), None)

    def named(self, name: str) -> MemoryStream:
        if (stream := self.streams.get(name)) is None:
            raise NoStream(f"there is no stream {name}")
        return stream

    def durable(self, stream: str, name: str) -> MemoryDurable:
        if (found := self.named(stream).durables.get(name)) is None:
            raise NoStream(f"{stream} has no durable {name}")
        return found

    def ensure(self, topology: Topology) -> None:
        for wanted in topology.streams:
            stream = self.streams.setdefault(wanted.name, MemoryStream(wanted.name, {}))
            config = changed(stream.config, wanted.config) if stream.config else wanted.config
            if stream.config.get("storage", config.get("storage")) != config.get("storage"):
                raise BusError(f"{wanted.name}: the storage of a stream cannot change")
            stream.reconfigure(config)
        for durable in topology.durables:
            known = self.named(durable.stream).durables
            known.setdefault(durable.name, MemoryDurable(self.streams[durable.stream], {})).config.update(
                durable.config
            )

    def route(self, message: Message) -> bool:
        """Hand a message to core subscribers, one per queue group. False when nobody listens."""
        loop = asyncio.get_running_loop()
        groups: dict[str, list[Interest]] = {}
        found = False
        for interest in self.interests:
            if interest.bus.connected and matches(interest.pattern, message.subject):
                found = True
                if interest.queue:
                    groups.setdefault(interest.queue, []).append(interest)
                else:
                    loop.call_soon(interest.deliver, message)
        for members in groups.values():
            loop.call_soon(self._random.choice(members).deliver, message)
        return found

    def stored(self, stream: MemoryStream, message: Message) -> None:
        self._republish(stream, message)
        self.wake()

    def _republish(self, stream: MemoryStream, message: Message) -> None:
        rule = stream.config.get("republish")
        if rule and matches(rule["src"], message.subject):
            headers = {
                **message.headers,
                "Nats-Stream": stream.name,
                "Nats-Subject": message.subject,
                "Nats-Sequence": str(message.seq),
            }
            self.route(
                msgspec.structs.replace(
                    message, subject=transform(rule["src"], rule["dest"], message.subject), headers=headers
                )
            )
