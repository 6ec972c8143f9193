"""One connection to nats-server: write, ask, subscribe, and know whether it stands. No JetStream here.

What is published while the connection is down is dropped, not kept: a signal that arrives late is worse than none. A
connection that may no longer hear what it subscribed to is down, too (`nats_listening`).
"""

import asyncio
import contextlib
import logging
import re
import secrets
import time
from collections.abc import Callable
from typing import Any, Final

from llorch_shared.bus.nats_client import BusClient, client_options
from llorch_shared.bus.nats_denials import Denials
from llorch_shared.bus.nats_inbox import Answer, Inbox, Series, expire
from llorch_shared.bus.nats_library import Subscription as ClientSubscription
from llorch_shared.bus.nats_listening import Listening
from llorch_shared.bus.nats_outbox import Outbox, SendLimit
from llorch_shared.bus.nats_parser import RawSink, Sink
from llorch_shared.bus.port import Denied, TooLarge, Unanswered
from llorch_shared.metrics import Metrics
from llorch_shared.settings import NatsSettings, Secret

log = logging.getLogger(__name__)

FLUSH_TIMEOUT_S: Final = 10.0
FAREWELL_S: Final = 2.0
LOG_EVERY_S: Final = 5.0

_BAD_SUBJECT: Final = re.compile(r"[\x00-\x20\x7f]")


class LinkSubscription:
    """A subscription that is sent again after every reconnect until closed."""

    def __init__(self, link: "Link", sid: int) -> None:
        self._link: Final = link
        self._sid: Final = sid

    async def close(self) -> None:
        self._link.unsubscribe(self._sid)


class Link:
    """`up` is called whenever the connection stands, the first time included; `down` when it broke; `closed` when it
    ended for good without having been asked to."""

    def __init__(
        self, name: str, *, inbox_prefix: str, metrics: Metrics | None = None, send_limit: SendLimit | None = None
    ) -> None:
        self.name: Final = name
        self.generation = 0
        """Counts the connections so far."""
        self.up: Callable[[], None] = lambda: None
        self.down: Callable[[], None] = lambda: None
        self.closed: Callable[[], None] = lambda: None
        self._metrics: Final = metrics
        self._client: Final = BusClient(self._violation)
        self._parser: Final = self._client.parser
        self._inbox: Final = Inbox(f"{inbox_prefix}.{secrets.token_hex(8)}")
        self._loop: Final = asyncio.get_running_loop()
        self._standing: Final = asyncio.Event()
        self._outbox: Final = Outbox(self._client, limit=send_limit)
        self._denials: Final = Denials()
        self._listening: Final = Listening(
            self._client, write=self._outbox.write, pong=self._pong, whole=self._listens_again
        )
        self._flushes: set[asyncio.Future[Any]] = set()
        self._closing = False
        self._quiet_until = 0.0

    async def connect(self, settings: NatsSettings, *, password: Secret | None) -> None:
        """Connect, trying for as long as it takes; the caller bounds it by cancelling."""
        await self._client.connect(
            **client_options(settings, password, self.name),
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnected,
            reconnected_cb=self._on_reconnected,
            closed_cb=self._on_closed,
        )
        self._subscribe(f"{self._inbox.prefix}*", "", sink=self._inbox.sink)
        self._stood()
        while True:
            with contextlib.suppress(Unanswered):
                await self.flush()
                return

    @property
    def connected(self) -> bool:
        return self._standing.is_set()

    def on_cluster_change(self, callback: Callable[[], None]) -> None:
        self._client.cluster_changed.append(callback)

    @property
    def denied(self) -> str:
        """The server's words about what this user may not do, while they count."""
        return self._listening.problem or self._denials.problem(self._loop.time())

    def _stood(self) -> None:
        self.generation += 1
        self._quiet_until = 0.0
        self._standing.set()
        if self._metrics is not None:
            self._metrics.gauge("bus_connected").set(1)
        self.up()

    async def _on_reconnected(self) -> None:
        log.info("%s is connected to the bus again", self.name, extra={"action": "bus.reconnected"})
        if not self._listening.problem:
            self._stood()

    async def _on_disconnected(self) -> None:
        # Here and not when it stands again: by then the subscriptions were sent again, and judged.
        self._denials.clear()
        self._listening.stop()
        if self._fall("the connection to the bus broke"):
            log.warning("%s lost the bus, reconnecting", self.name, extra={"action": "bus.lost"})
            self.down()

    def _fall(self, words: str) -> bool:
        """Whether it stood, and somebody wants to know."""
        stood = self._standing.is_set()
        self._standing.clear()
        self._outbox.clear()
        if self._metrics is not None:
            self._metrics.gauge("bus_connected").set(0)
        self._fail_all(words)
        return stood and not self._closing

    async def _on_closed(self) -> None:
        if not self._closing:
            log.error("%s: the bus connection closed for good", self.name, extra={"action": "bus.closed"})
            self.closed()

    async def _on_error(self, error: Exception) -> None:
        self.count("connection")
        now = time.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + LOG_EVERY_S
            words = str(error) or type(error).__name__
            log.warning("%s: trouble with the bus: %s", self.name, words, extra={"action": "bus.error"})

    def _violation(self, words: str) -> None:
        """Without this a forbidden question looks like one that nobody answers."""
        self.count("permission")
        subject, listens, news = self._denials.heard(words, self._loop.time())
        if news:
            log.error("%s: the server forbids: %s", self.name, words, extra={"action": "bus.denied"})
        if not listens:
            self._inbox.deny(subject, words)
        elif self._listening.refused(subject, words) and self._fall(words):
            self.down()

    def _listens_again(self) -> None:
        log.warning("%s hears again what it subscribed to", self.name, extra={"action": "bus.listens"})
        self._denials.clear()
        self._stood()

    def count(self, kind: str) -> None:
        if self._metrics is not None:
            self._metrics.counter("bus_errors_total").labels(kind).inc()

    def _fail_all(self, words: str) -> None:
        self._inbox.fail_all(Unanswered(words))
        for waiter in self._flushes:
            expire(waiter, words)

    async def wait_connected(self, timeout_s: float) -> float:
        """Seconds that are left of `timeout_s`. Raises Unanswered when the connection does not stand in time."""
        if self._standing.is_set():
            return timeout_s
        if self._closing:
            raise Unanswered("the bus connection was closed")
        begun = self._loop.time()
        try:
            async with asyncio.timeout(timeout_s):
                await self._standing.wait()
        except TimeoutError:
            raise Unanswered("not connected to the bus") from None
        return max(0.05, timeout_s - (self._loop.time() - begun))

    def publish(self, subject: str, data: bytes, header: bytes = b"", reply: str = "") -> bool:
        """Write one message. False when it was dropped: not connected, or the server does not read."""
        if not subject or _BAD_SUBJECT.search(subject):
            raise ValueError(f"{subject!r} is not a subject")
        size = len(header) + len(data)
        if size > self._client.max_payload:
            raise TooLarge(f"{size} bytes on {subject}: the server takes {self._client.max_payload}")
        if not self._standing.is_set():
            return False
        if header:
            line = f"HPUB {subject} {reply} {len(header)} {size}\r\n".encode()
            sent = self._outbox.write(b"%b%b%b\r\n" % (line, header, data))
        else:
            sent = self._outbox.write(b"%b%b\r\n" % (f"PUB {subject} {reply} {size}\r\n".encode(), data))
        if not sent:
            self.count("outbound_full")
        return sent

    async def flush(self, timeout_s: float = FLUSH_TIMEOUT_S) -> None:
        """Wait until the server has read what was written before. Raises Unanswered."""
        await self._pong(await self.wait_connected(timeout_s))

    async def _pong(self, timeout_s: float = FLUSH_TIMEOUT_S) -> None:
        """Wait for the answer to a ping. Raises Unanswered."""
        self._outbox.send()
        waiter: asyncio.Future[Any] = self._loop.create_future()
        self._flushes.add(waiter)
        handle = self._loop.call_later(timeout_s, expire, waiter, "the server did not answer a ping")
        try:
            try:
                await self._client._send_ping(waiter)
            except (RuntimeError, OSError) as error:
                raise Unanswered(f"the connection to the bus is gone: {error}") from error
            await waiter
        finally:
            handle.cancel()
            self._flushes.discard(waiter)

    async def ask(self, subject: str, data: bytes, header: bytes = b"", *, timeout_s: float) -> Answer:
        """One answer. Raises Unanswered, Denied, TooLarge. While disconnected it waits, nothing sent."""
        timeout_s = await self.wait_connected(timeout_s)
        question, reply = self._inbox.question(subject)
        try:
            sent = self.publish(subject, data, header, reply)
        except BaseException:
            question.close()
            raise
        if not sent:
            question.failed(Unanswered("the server does not read what it is sent"))
        return await question.answer(timeout_s)

    async def ask_for_many(self, subject: str, data: bytes, *, timeout_s: float) -> Series:
        """Many answers; the caller closes the series."""
        await self.wait_connected(timeout_s)
        series, reply = self._inbox.series(subject)
        if not self.publish(subject, data, b"", reply):
            series.failed(Unanswered("the server does not read what it is sent"))
        return series

    def new_inbox(self) -> str:
        """Prefix for a subscription of its own: append a token."""
        return self._inbox.subject()

    def _subscribe(self, subject: str, queue: str, *, sink: Sink | None = None, raw: RawSink | None = None) -> int:
        if not subject or _BAD_SUBJECT.search(subject) or _BAD_SUBJECT.search(queue):
            raise ValueError(f"{subject!r} is not a subject")
        client = self._client
        client._sid += 1
        sid = client._sid
        if raw is not None:
            self._parser.raw[b"%d" % sid] = raw
        elif sink is not None:
            self._parser.sinks[b"%d" % sid] = sink
        # In the client's table it is sent again after each reconnect; its own queue and task stay unused.
        client._subs[sid] = ClientSubscription(client, sid, subject, queue=queue)
        if client.is_connected:
            self._outbox.write(f"SUB {subject} {queue} {sid}\r\n".encode())
            self._outbox.send()
        return sid

    async def subscribe(
        self, subject: str, queue: str = "", *, sink: Sink | None = None, raw: RawSink | None = None
    ) -> LinkSubscription:
        """In effect at the server on return. Raises Denied, Unanswered."""
        self._denials.forget(subject)
        sid = self._subscribe(subject, queue, sink=sink, raw=raw)
        self._listening.new.add(sid)
        try:
            await self.flush()
            if words := self._denials.of(subject):
                raise Denied(words)
        except BaseException:
            self.unsubscribe(sid)
            raise
        finally:
            self._listening.new.discard(sid)
        return LinkSubscription(self, sid)

    def unsubscribe(self, sid: int) -> None:
        key = b"%d" % sid
        self._parser.raw.pop(key, None)
        self._parser.sinks.pop(key, None)
        if self._client._subs.pop(sid, None) is not None and self._standing.is_set():
            self._outbox.write(b"UNSUB %b\r\n" % key)

    async def hang_up(self) -> None:
        """Break the connection. What the server has not taken of it is dropped; then as after any other loss."""
        if self._standing.is_set():
            self._client.drop_connection()
            await self._client.force_reconnect()

    async def close(self) -> None:
        if self._closing:
            return
        if self._standing.is_set():
            with contextlib.suppress(Unanswered):
                await self.flush(FAREWELL_S)
        self._closing = True
        self._listening.stop()
        await self._client.close()
        self._standing.clear()
        self._fail_all("the bus connection was closed")
