"""HTTP/1.1 to one engine on loopback: pooled keep-alive connections, streamed bodies by callback, abort by closing.

Small on purpose: the streamed body is the hot path of the node (`engine_connection.py`), and a general client costs
twice the CPU per token. No TLS, no redirects, no compression: engines are children of this process.
"""

import asyncio
from collections.abc import Mapping
from typing import Final, NamedTuple

from llorch_poold.engine_connection import (
    Connection,
    EngineHttpError,
    Exchange,
    ExchangeHandler,
    NotHttp,
    TooSlow,
    Unreachable,
)

REPLY_BYTES_MAX: Final = 16 * 1024 * 1024
IDLE_CONNECTIONS_MAX: Final = 64
CONNECT_TIMEOUT_S: Final = 5.0


class Reply(NamedTuple):
    status: int
    body: bytes


class EngineHttp:
    """The client of one engine. `close` aborts whatever is left."""

    def __init__(self, host: str, port: int) -> None:
        self._host: Final = host
        self._port: Final = port
        self._host_header: Final = f"{host}:{port}".encode()
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()
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
                _, connection = await loop.create_connection(lambda: Connection(self), self._host, self._port)
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

    def give_back(self, connection: Connection) -> None:
        if len(self._idle) < IDLE_CONNECTIONS_MAX and not self._closed:
            self._idle.append(connection)
        else:
            connection.drop()

    def lost(self, connection: Connection) -> None:
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
