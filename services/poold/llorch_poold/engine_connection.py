"""One connection to an engine, and the exchange that it carries: a request, and an answer that is handed over as it
comes.

All body bytes of one socket read reach the handler in one call, so that everything that arrived together is handled
together. This is the hot path of the node.

    EngineHttpError
    ├─ Unreachable     no connection, or it broke before the response was complete
    ├─ NotHttp         the peer does not speak HTTP
    └─ TooSlow         no complete answer in time
"""

import asyncio
from typing import Any, Final, Protocol, cast

import httptools


class EngineHttpError(Exception):
    """The exchange with the engine did not complete."""


class Unreachable(EngineHttpError): ...


class NotHttp(EngineHttpError): ...


class TooSlow(EngineHttpError): ...


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
        self.connection: Connection | None = None
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


class Owner(Protocol):
    """Who has the connections."""

    def open(self, exchange: Exchange) -> None:
        """Carry it on a new connection: this one was closed before it was seen."""

    def give_back(self, connection: "Connection") -> None:
        """Its exchange is complete; it can carry another one."""

    def lost(self, connection: "Connection") -> None: ...


class Connection(asyncio.Protocol):
    """One socket; carries one exchange at a time."""

    def __init__(self, owner: Owner) -> None:
        self._owner: Final = owner
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
            self._owner.give_back(self)
        else:
            self.drop()
        if handler is not None:
            handler.on_end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._owner.lost(self)
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return
        if exchange.retriable and not self._answered:
            exchange.connection = None
            self._owner.open(exchange)
            return
        exchange.fail(Unreachable(f"the engine closed the connection: {exc or 'end of stream'}"))
