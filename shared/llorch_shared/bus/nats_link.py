"""One connection to nats-server: write, ask, subscribe, and know whether it stands. No JetStream here.

TLS, authentication, reconnecting and the server pool are nats-py's. Reading goes through `FastParser`; writing is
collected for one loop iteration and given to the socket at once. Every answer comes back to one wildcard inbox and is
matched by a number, so asking costs no subscription.
"""

import asyncio
import contextlib
import logging
import re
import secrets
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import nats.errors
from nats.aio.client import Client
from nats.aio.subscription import Subscription as ClientSubscription

from llorch_shared.bus.nats_parser import FastParser, RawSink, Sink, parse_header
from llorch_shared.bus.port import BusError, Denied, TooLarge, Unanswered
from llorch_shared.metrics import Metrics
from llorch_shared.settings import NatsSettings, Secret

log = logging.getLogger(__name__)

RECONNECT_WAIT_S: Final = 0.2
PING_INTERVAL_S: Final = 10
CONNECT_TIMEOUT_S: Final = 5
OUTBOUND_BYTES_MAX: Final = 64 * 1024 * 1024
"""Bytes not yet taken by the socket. Beyond this the server is not reading: signals are dropped, stores refused."""
DENIED_MAX: Final = 256
LOG_EVERY_S: Final = 5.0

_BAD_SUBJECT: Final = re.compile(r"[\x00-\x20\x7f]")
_VIOLATION: Final = re.compile(r'permissions violation for (publish|subscription) to "([^"]+)"')


class Answer(NamedTuple):
    """What came back to an inbox. `status` is the server's (503: nobody there), 0 for an ordinary message."""

    subject: bytes
    data: bytes
    status: int
    description: str
    headers: dict[str, str]


def header_block(headers: Mapping[str, str]) -> bytes:
    """Raises ValueError for a line break in a name or value: it would let a caller forge headers."""
    text = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if text.count("\n") != len(headers) or text.count("\r") != len(headers):
        raise ValueError("a header must not contain a line break")
    return b"NATS/1.0\r\n%b\r\n" % text.encode()


class _Connection(Client):
    """nats-py's client with our parser, and without two ways of dying silently."""

    def __init__(self, violated: Callable[[str], None]) -> None:
        super().__init__()
        self.parser: Final = FastParser(self)
        self._ps = self.parser
        self._violated: Final = violated

    async def _process_pong(self) -> None:
        """A waiter that gave up has a finished future; setting it would end the read loop for good."""
        if self._pongs:
            waiter = self._pongs.pop(0)
            if not waiter.done():
                waiter.set_result(True)
        self._pongs_received += 1
        self._pings_outstanding = 0

    async def _process_err(self, err_msg: str) -> None:
        """Permission errors are told; any other server error means a new connection, never a closed client."""
        if "permissions violation" in err_msg:
            self._violated(err_msg.strip("'"))
            return
        await self._error_cb(nats.errors.Error(f"nats: {err_msg.strip(chr(39))}"))
        await self._process_op_err(nats.errors.Error(err_msg))


class LinkSubscription:
    """A subscription that is replayed after every reconnect until closed."""

    def __init__(self, link: "Link", sid: int) -> None:
        self._link: Final = link
        self._sid: Final = sid

    async def close(self) -> None:
        self._link.unsubscribe(self._sid)


class Link:
    """`up` and `down` are called at each change of the connection, `up` first for the initial one."""

    def __init__(self, name: str, *, metrics: Metrics | None = None) -> None:
        self.name: Final = name
        self.generation = 0
        self._metrics: Final = metrics
        self._client: Final = _Connection(self._violation)
        self._parser: Final = self._client.parser
        self._standing: Final = asyncio.Event()
        self._loop: Final = asyncio.get_running_loop()
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._asked: dict[bytes, tuple[asyncio.Future[tuple[bytes, bytes, bytes]], str]] = {}
        self._collecting: dict[bytes, tuple[asyncio.Queue[Answer | None], str]] = {}
        self._next = 0
        self._inbox = ""
        self._inbox_size = 0
        self._denied: dict[str, str] = {}
        self._last_denied = ""
        self._flushes: set[asyncio.Future[Any]] = set()
        self._closing = False
        self._quiet_until = 0.0
        self.up: Callable[[], None] = lambda: None
        self.down: Callable[[], None] = lambda: None
        self.closed: Callable[[], None] = lambda: None

    async def connect(self, settings: NatsSettings, *, password: Secret | None, inbox_prefix: str) -> None:
        """Connect, trying for as long as it takes; the caller bounds it by cancelling."""
        options: dict[str, Any] = {
            "servers": [url.strip() for url in settings.url.split(",") if url.strip()],
            "name": self.name,
            "max_reconnect_attempts": -1,
            "reconnect_time_wait": RECONNECT_WAIT_S,
            "connect_timeout": CONNECT_TIMEOUT_S,
            "ping_interval": PING_INTERVAL_S,
            "pending_size": OUTBOUND_BYTES_MAX,
            "error_cb": self._on_error,
            "disconnected_cb": self._on_disconnected,
            "reconnected_cb": self._on_reconnected,
            "closed_cb": self._on_closed,
        }
        if settings.url.startswith(("tls://", "wss://")):
            options["tls"] = ssl.create_default_context()
        if settings.creds_file:
            options["user_credentials"] = settings.creds_file
        elif settings.nkey_seed_file:
            options["nkeys_seed"] = settings.nkey_seed_file
        elif settings.user:
            options["user"] = settings.user
            options["password"] = password.reveal() if password else ""
        await self._client.connect(**options)
        self._inbox = f"{inbox_prefix}.{secrets.token_hex(8)}."
        self._inbox_size = len(self._inbox)
        self._subscribe(f"{self._inbox}*", "", sink=self._answered)
        self._stood()
        while True:
            with contextlib.suppress(Unanswered):
                await self.flush()
                return

    @property
    def connected(self) -> bool:
        return self._standing.is_set()

    @property
    def denied(self) -> Mapping[str, str]:
        """Subject (lower case) to the server's words, for what this user may not do on this connection."""
        return self._denied

    @property
    def last_denied(self) -> str:
        return self._last_denied

    def _stood(self) -> None:
        self.generation += 1
        self._denied.clear()
        self._last_denied = ""
        self._quiet_until = 0.0
        self._standing.set()
        if self._metrics is not None:
            self._metrics.gauge("bus_connected").set(1)
        self.up()

    async def _on_reconnected(self) -> None:
        log.info("%s is connected to the bus again", self.name, extra={"action": "bus.reconnected"})
        self._stood()

    async def _on_disconnected(self) -> None:
        was_standing = self._standing.is_set()
        self._standing.clear()
        self._out.clear()
        self._out_bytes = 0
        if self._metrics is not None:
            self._metrics.gauge("bus_connected").set(0)
        self._fail_all(Unanswered("the connection to the bus broke"))
        if self._closing or not was_standing:
            return
        log.warning("%s lost the bus, reconnecting", self.name, extra={"action": "bus.lost"})
        self.down()

    async def _on_closed(self) -> None:
        if not self._closing:
            log.error("%s: the bus connection closed for good", self.name, extra={"action": "bus.closed"})
            self.closed()

    async def _on_error(self, error: Exception) -> None:
        self._count("connection")
        now = time.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + LOG_EVERY_S
            log.warning("%s: bus: %s", self.name, error or type(error).__name__, extra={"action": "bus.error"})

    def _violation(self, text: str) -> None:
        self._count("permission")
        found = _VIOLATION.search(text)
        subject = found[2] if found else text
        self._last_denied = text
        if subject not in self._denied and len(self._denied) < DENIED_MAX:
            self._denied[subject] = text
            log.error("%s: the server forbids: %s", self.name, text, extra={"action": "bus.denied"})
        for token, (future, asked) in list(self._asked.items()):
            if asked.lower() == subject and not future.done():
                del self._asked[token]
                future.set_exception(Denied(text))
        for queue, asked in self._collecting.values():
            if asked.lower() == subject:
                queue.put_nowait(None)

    def _count(self, kind: str) -> None:
        if self._metrics is not None:
            self._metrics.counter("bus_errors_total").labels(kind).inc()

    def _fail_all(self, error: BusError) -> None:
        asked, self._asked = self._asked, {}
        for future, _ in asked.values():
            if not future.done():
                future.set_exception(error)
        for queue, _ in self._collecting.values():
            queue.put_nowait(None)
        for waiter in self._flushes:
            if not waiter.done():
                waiter.set_exception(error)

    async def wait_connected(self, timeout_s: float) -> None:
        """Raises Unanswered when the connection does not stand in time."""
        if not self._standing.is_set():
            try:
                await asyncio.wait_for(self._standing.wait(), timeout_s)
            except TimeoutError:
                raise Unanswered("not connected to the bus") from None

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
            return self._write(b"%b%b%b\r\n" % (line, header, data))
        return self._write(b"%b%b\r\n" % (f"PUB {subject} {reply} {size}\r\n".encode(), data))

    def _write(self, chunk: bytes) -> bool:
        if self._out_bytes > OUTBOUND_BYTES_MAX:
            self._count("outbound_full")
            return False
        if not self._out:
            self._loop.call_soon(self._write_out)
        self._out.append(chunk)
        self._out_bytes += len(chunk)
        return True

    def _write_out(self) -> None:
        chunks, self._out = self._out, []
        self._out_bytes = 0
        transport: Any = self._client._transport
        if not chunks or transport is None or not self._client.is_connected:
            return
        transport.write(b"".join(chunks))
        writer = getattr(transport, "_io_writer", None)
        if writer is not None:
            self._out_bytes = writer.transport.get_write_buffer_size()

    async def flush(self, timeout_s: float = 10.0) -> None:
        """Wait until the server has read what was written before. Raises Unanswered."""
        await self.wait_connected(timeout_s)
        self._write_out()
        waiter: asyncio.Future[Any] = self._loop.create_future()
        self._flushes.add(waiter)
        handle = self._loop.call_later(timeout_s, _expire, waiter, "the server did not answer a ping")
        try:
            await self._client._send_ping(waiter)
            await waiter
        finally:
            handle.cancel()
            self._flushes.discard(waiter)

    def _token(self) -> bytes:
        self._next += 1
        return b"%d" % self._next

    async def ask(self, subject: str, data: bytes, header: bytes = b"", *, timeout_s: float) -> Answer:
        """One answer. Raises Unanswered, Denied, TooLarge. While disconnected it waits, nothing sent."""
        if not self._standing.is_set():
            begun = self._loop.time()
            await self.wait_connected(timeout_s)
            timeout_s = max(0.05, timeout_s - (self._loop.time() - begun))
        token = self._token()
        future: asyncio.Future[tuple[bytes, bytes, bytes]] = self._loop.create_future()
        if not self.publish(subject, data, header, self._inbox + token.decode()):
            raise Unanswered("the server does not read what it is sent")
        self._asked[token] = (future, subject)
        handle = self._loop.call_later(timeout_s, _expire, future, f"no answer on {subject} in {timeout_s:.1f} s")
        try:
            answer_subject, payload, block = await future
        finally:
            handle.cancel()
            self._asked.pop(token, None)
        if block:
            return Answer(answer_subject, payload, *parse_header(block))
        return Answer(answer_subject, payload, 0, "", {})

    async def collect(self, subject: str, data: bytes, *, timeout_s: float) -> "Collected":
        """Many answers, read one by one until the reader has enough."""
        await self.wait_connected(timeout_s)
        token = self._token()
        queue: asyncio.Queue[Answer | None] = asyncio.Queue()
        self._collecting[token] = (queue, subject)
        if not self.publish(subject, data, b"", self._inbox + token.decode()):
            del self._collecting[token]
            raise Unanswered("the server does not read what it is sent")
        return Collected(self, token, queue, subject, timeout_s)

    def stop_collecting(self, token: bytes) -> None:
        self._collecting.pop(token, None)

    def _answered(self, subject: bytes, _reply: bytes, data: bytes, header: bytes) -> None:
        token = subject[self._inbox_size :]
        if (asked := self._asked.get(token)) is not None:
            if not asked[0].done():
                asked[0].set_result((subject, data, header))
        elif (collecting := self._collecting.get(token)) is not None:
            status = parse_header(header) if header else (0, "", {})
            collecting[0].put_nowait(Answer(subject, data, *status))

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
            self._out.insert(0, f"SUB {subject} {queue} {sid}\r\n".encode())
            self._write_out()
        return sid

    async def subscribe(
        self, subject: str, queue: str = "", *, sink: Sink | None = None, raw: RawSink | None = None
    ) -> LinkSubscription:
        """In effect at the server on return. Raises Denied, Unanswered."""
        sid = self._subscribe(subject, queue, sink=sink, raw=raw)
        try:
            await self.flush()
            if words := self._denied.get(subject.lower()):
                raise Denied(words)
        except BaseException:
            self.unsubscribe(sid)
            raise
        return LinkSubscription(self, sid)

    def unsubscribe(self, sid: int) -> None:
        key = b"%d" % sid
        self._parser.raw.pop(key, None)
        self._parser.sinks.pop(key, None)
        if self._client._subs.pop(sid, None) is not None and self._standing.is_set():
            self._write(b"UNSUB %b\r\n" % key)

    def new_inbox(self) -> str:
        return f"{self._inbox}{self._token().decode()}"

    async def close(self) -> None:
        if self._closing:
            return
        if self._standing.is_set():
            with contextlib.suppress(Unanswered):
                await self.flush(2.0)
        self._closing = True
        await self._client.close()
        self._standing.clear()
        self._fail_all(Unanswered("the bus connection was closed"))


class Collected:
    """Answers to one question, in order."""

    def __init__(
        self, link: Link, token: bytes, queue: asyncio.Queue[Answer | None], subject: str, timeout_s: float
    ) -> None:
        self._link: Final = link
        self._token: Final = token
        self._queue: Final = queue
        self._subject: Final = subject
        self._timeout_s: Final = timeout_s

    async def next(self) -> Answer:
        """Raises Unanswered when the next answer does not come, Denied when the question was forbidden."""
        if self._queue.empty():
            try:
                answer = await asyncio.wait_for(self._queue.get(), self._timeout_s)
            except TimeoutError:
                raise Unanswered(f"no answer on {self._subject}") from None
        else:
            answer = self._queue.get_nowait()
        if answer is None:
            if words := self._link.denied.get(self._subject.lower()):
                raise Denied(words)
            raise Unanswered("the connection to the bus broke")
        return answer

    def close(self) -> None:
        self._link.stop_collecting(self._token)


def _expire(future: "asyncio.Future[Any]", words: str) -> None:
    if not future.done():
        future.set_exception(Unanswered(words))
