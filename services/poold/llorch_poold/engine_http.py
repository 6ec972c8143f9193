"""HTTP/1.1 to one engine on loopback: pooled keep-alive connections, streamed bodies by callback, abort by closing.

Small on purpose: the streamed body is the hot path of the node, and a general client costs twice the CPU per token. All
body bytes of one socket read reach the handler in one call, so that everything that arrived together is handled
together. No TLS, no redirects, no compression: engines are children of this process.

    EngineHttpError
    ├─ Unreachable     no connection, or it broke before the response was complete
    ├─ NotHttp         the peer does not speak HTTP
    └─ TooSlow         no complete answer in time
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Protocol, cast

import httptools

REPLY_BYTES_MAX: Final = 16 * 1024 * 1024
IDLE_CONNECTIONS_MAX: Final = 64
CONNECT_TIMEOUT_S: Final = 5.0


class EngineHttpError(Exception):
    """The exchange with the engine did not complete."""


class Unreachable(EngineHttpError): ...


class NotHttp(EngineHttpError): ...


class TooSlow(EngineHttpError): ...


class Reply(NamedTuple):
    status: int
    body: bytes


class ExchangeHandler(Protocol):
    """Callbacks of one exchange, in this order; `on_end` or `on_error` comes last, none after an abort."""

    def on_head(self, status: int, kind: str) -> None:
        """`kind` is the content type without its parameters, in lower case; empty when the peer tells none."""

    def on_body(self, data: bytes) -> None:
        """All body bytes of one socket read."""

    def on_end(self) -> None: ...

    def on_error(self, error: EngineHttpError) -> None: ...


class Exchange:
    """One request on its way. `abort` is how an engine is told to stop: its socket closes."""

    __slots__ = ("connection", "handler", "opening", "request", "retriable")

    def __init__(self, handler: ExchangeHandler, request: bytes) -> None:
        self.handler: ExchangeHandler | None = handler
        self.request = request
        self.connection: _Connection | None = None
        self.opening: asyncio.Task[None] | None = None
        self.retriable = False

    def abort(self) -> None:
        """Close the connection and call nobody any more. Safe to call twice, and after the end."""
        self.handler = None
        if self.opening is not None:
            self.opening.cancel()
            self.opening = None
        if self.connection is not None:
            self.connection.drop()
            self.connection = None

    def fail(self, error: EngineHttpError) -> None:
        handler, self.handler, self.connection = self.handler, None, None
        if handler is not None:
            handler.on_error(error)


class _Connection(asyncio.Protocol):
    """One socket; carries one exchange at a time."""

    def __init__(self, client: "EngineHttp") -> None:
        self._client: Final = client
        self._parser: Final[Any] = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._body: list[bytes] = []
        self._kind = b""
        self._head_done = False
        self._complete = False
        self._answered = False
        self._keep = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def carry(self, exchange: Exchange) -> None:
        assert self._transport is not None
        self._exchange = exchange
        self._complete = self._answered = self._head_done = False
        self._kind = b""
        exchange.connection = self
        self._transport.write(exchange.request)

    @property
    def closing(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def pause(self, paused: bool) -> None:
        if self._transport is not None and not self._transport.is_closing():
            if paused and self._transport.is_reading():
                self._transport.pause_reading()
            elif not paused and not self._transport.is_reading():
                self._transport.resume_reading()

    def drop(self) -> None:
        self._exchange = None
        if self._transport is not None:
            self._transport.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self._kind = value

    def on_headers_complete(self) -> None:
        self._head_done = True

    def on_body(self, data: bytes) -> None:
        self._body.append(data)

    def on_message_complete(self) -> None:
        self._complete = True
        self._keep = self._parser.should_keep_alive()

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            self.drop()
            return
        self._answered = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.drop()
            exchange.fail(NotHttp(f"the engine does not speak HTTP: {error}"))
            return
        if self._head_done:
            self._head_done = False
            if exchange.handler is not None:
                kind = self._kind.partition(b";")[0].strip().lower().decode("ascii", "replace")
                exchange.handler.on_head(self._parser.get_status_code(), kind)
        if self._body:
            body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
            self._body.clear()
            if exchange.handler is not None:
                exchange.handler.on_body(body)
        if self._complete and self._exchange is exchange:
            self._finish(exchange)

    def _finish(self, exchange: Exchange) -> None:
        self._exchange = exchange.connection = None
        handler, exchange.handler = exchange.handler, None
        if self._keep:
            self._client.give_back(self)
        else:
            self.drop()
        if handler is not None:
            handler.on_end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._client.lost(self)
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return
        if exchange.retriable and not self._answered:
            exchange.connection = None
            self._client.open(exchange)
            return
        exchange.fail(Unreachable(f"the engine closed the connection: {exc or 'end of stream'}"))


class EngineHttp:
    """The client of one engine. `close` aborts whatever is left."""

    def __init__(self, host: str, port: int) -> None:
        self._host: Final = host
        self._port: Final = port
        self._host_header: Final = f"{host}:{port}".encode()
        self._idle: list[_Connection] = []
        self._all: set[_Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._paused = False
        self._closed = False

    def post(self, path: str, body: bytes, handler: ExchangeHandler, headers: Mapping[str, str]) -> Exchange:
        """Send a request whose response body goes to `handler` as it arrives."""
        return self._begin("POST", path, body, handler, headers)

    async def request(self, method: str, path: str, body: bytes = b"", *, timeout_s: float) -> Reply:
        """One small exchange. Raises Unreachable, NotHttp, TooSlow."""
        collector = _Collector()
        exchange = self._begin(method, path, body, collector, {})
        try:
            async with asyncio.timeout(timeout_s):
                return await collector.reply
        except TimeoutError as error:
            raise TooSlow(f"{method} {path}: no answer within {timeout_s:g} s") from error
        finally:
            exchange.abort()

    def pause(self, paused: bool) -> None:
        """Stop or resume reading from the engine: what it may send ahead is bounded by the socket buffers."""
        self._paused = paused
        for connection in self._all:
            connection.pause(paused)

    async def close(self) -> None:
        self._closed = True
        for task in list(self._opening):
            task.cancel()
        for connection in list(self._all):
            connection.drop()
        self._idle.clear()

    def _begin(
        self, method: str, path: str, body: bytes, handler: ExchangeHandler, headers: Mapping[str, str]
    ) -> Exchange:
        extra = "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("ascii")
        kind = b"Content-Type: application/json\r\n" if body else b""
        request = b"%b %b HTTP/1.1\r\nHost: %b\r\n%b%bContent-Length: %d\r\n\r\n%b" % (
            method.encode("ascii"),
            path.encode("ascii"),
            self._host_header,
            kind,
            extra,
            len(body),
            body,
        )
        exchange = Exchange(handler, request)
        while self._idle:
            connection = self._idle.pop()
            if not connection.closing:
                exchange.retriable = True
                connection.carry(exchange)
                return exchange
        self.open(exchange)
        return exchange

    def open(self, exchange: Exchange) -> None:
        """Carry `exchange` on a new connection."""
        exchange.retriable = False
        task = asyncio.get_running_loop().create_task(self._open(exchange), name="engine connection")
        exchange.opening = task
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, exchange: Exchange) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, connection = await loop.create_connection(lambda: _Connection(self), self._host, self._port)
        except (OSError, TimeoutError) as error:
            exchange.opening = None
            exchange.fail(Unreachable(f"cannot connect to the engine at {self._host}:{self._port}: {error}"))
            return
        exchange.opening = None
        if self._closed or exchange.handler is None:
            connection.drop()
            return
        self._all.add(connection)
        connection.pause(self._paused)
        connection.carry(exchange)

    def give_back(self, connection: _Connection) -> None:
        if len(self._idle) < IDLE_CONNECTIONS_MAX and not self._closed:
            self._idle.append(connection)
        else:
            connection.drop()

    def lost(self, connection: _Connection) -> None:
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)


class _Collector:
    """Gathers one small reply."""

    def __init__(self) -> None:
        self.reply: Final[asyncio.Future[Reply]] = asyncio.get_running_loop().create_future()
        self._status = 0
        self._parts: list[bytes] = []
        self._size = 0

    def on_head(self, status: int, kind: str) -> None:
        self._status = status

    def on_body(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > REPLY_BYTES_MAX:
            self.on_error(NotHttp(f"the engine's answer is over {REPLY_BYTES_MAX} bytes"))
        else:
            self._parts.append(data)

    def on_end(self) -> None:
        if not self.reply.done():
            self.reply.set_result(Reply(self._status, b"".join(self._parts)))

    def on_error(self, error: EngineHttpError) -> None:
        if not self.reply.done():
            self.reply.set_exception(error)
