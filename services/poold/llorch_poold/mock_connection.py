"""The HTTP of the mock engine: one client connection, its requests and how each is answered.

Routes: GET /health /props /slots /metrics, POST /completion /v1/chat/completions /v1/embeddings /v1/rerank /tokenize
/apply-template /slots/{id}?action=erase, and POST /fault (`Fault`, or a list of them for the next generations one after
another). What is generated writes to the connection by itself (`mock_generation.py`, `mock_results.py`).
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, cast

import httptools
import msgspec

from llorch_poold.mock_chat import ChatWish
from llorch_poold.mock_faults import Fault, FaultKind
from llorch_poold.mock_generation import Generation
from llorch_poold.mock_options import Options
from llorch_poold.mock_output import Completion, asked_as_chat
from llorch_poold.mock_results import EmbeddingsAsked, RerankAsked, ResultJob
from llorch_poold.mock_slots import MockEngine
from llorch_poold.mock_status import metrics, props, slots
from llorch_poold.mock_text import Chat, chatml, tokens_of

BODY_BYTES_MAX: Final = 16 * 1024 * 1024
_COMPLETION: Final = msgspec.json.Decoder(Completion)
_CHAT_WISH: Final = msgspec.json.Decoder(ChatWish)
_CHAT: Final = msgspec.json.Decoder(Chat)
_EMBEDDINGS: Final = msgspec.json.Decoder(EmbeddingsAsked)
_RERANK: Final = msgspec.json.Decoder(RerankAsked)
_FAULTS: Final = msgspec.json.Decoder(Fault | list[Fault])
_REASONS: Final = {200: b"OK", 400: b"Bad Request", 404: b"Not Found", 500: b"Internal Server Error"}


class Connection(asyncio.Protocol):
    """One client connection; one request at a time."""

    def __init__(self, engine: MockEngine, options: Options, connections: set["Connection"]) -> None:
        self._engine: Final = engine
        self._options: Final = options
        self._connections: Final = connections
        self._parser: Final[Any] = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._generation: Generation | ResultJob | None = None
        self._path = b""
        self._body: list[bytes] = []
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=64 * 1024)
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.cut()

    def on_message_begin(self) -> None:
        self._path = b""
        self._body = []

    def on_url(self, url: bytes) -> None:
        self._path += url

    def on_body(self, data: bytes) -> None:
        self._body.append(data)
        if sum(map(len, self._body)) > BODY_BYTES_MAX:
            self.cut()

    def on_message_complete(self) -> None:
        path = self._path.partition(b"?")[0].decode("ascii", "replace")
        self._route(self._parser.get_method(), path, b"".join(self._body))

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._transport = None
        if self._generation is not None:
            self._generation.reader_left()
            self._generation = None

    def pause_writing(self) -> None:
        self._paused = True
        if isinstance(self._generation, Generation):
            self._generation.paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._generation is not None:
            self._generation.resume()

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def cut(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def ended(self) -> None:
        self._generation = None

    def _route(self, method: bytes, path: str, body: bytes) -> None:
        match method, path:
            case b"POST", "/completion":
                self._complete(body, _COMPLETION.decode)
            case b"POST", "/v1/chat/completions":
                self._complete(body, lambda wish: asked_as_chat(_CHAT_WISH.decode(wish)))
            case b"POST", "/v1/embeddings":
                self._result(_EMBEDDINGS, body)
            case b"POST", "/v1/rerank":
                self._result(_RERANK, body)
            case b"GET", "/health":
                self._health()
            case b"GET", "/props":
                self._reply(200, props(self._engine, self._options))
            case b"GET", "/slots":
                self._reply(200, slots(self._engine))
            case b"GET", "/metrics":
                self._send(200, b"text/plain; version=0.0.4", metrics(self._engine))
            case b"POST", "/tokenize":
                content = msgspec.json.decode(body, type=dict[str, Any]).get("content", "")
                self._reply(200, {"tokens": list(range(tokens_of(str(content))))})
            case b"POST", "/apply-template":
                self._apply_template(body)
            case b"POST", _ if path.startswith("/slots/"):
                self._act_on_slot(path.removeprefix("/slots/"))
            case b"POST", "/fault":
                self._set_fault(body)
            case _:
                self._error(404, "not_found_error", "File Not Found")

    def _act_on_slot(self, name: str) -> None:
        """As llama-server that may save nothing."""
        action = self._path.partition(b"?")[2]
        if self._engine.refuses_erasure():
            message = "This server does not support slots action. Start it with `--slot-save-path`"
            self._error(501, "not_supported_error", message)
        elif not name.isdigit():
            self._error(400, "invalid_request_error", "Invalid slot ID")
        elif action != b"action=erase":
            self._error(400, "invalid_request_error", "Invalid action")
        elif int(name) >= len(self._engine.slots):
            self._reply(200, {"id_slot": int(name), "n_erased": 0})
        else:
            self._engine.erase(int(name), lambda erased: self._reply(200, {"id_slot": int(name), "n_erased": erased}))

    def _health(self) -> None:
        if self._options.load_until and not Path(self._options.load_until).exists():
            self._error(503, "unavailable_error", "Loading model")
        else:
            self._reply(200, {"status": "ok"})

    def _apply_template(self, body: bytes) -> None:
        """`--no-chat-template` makes an engine without one."""
        if not self._options.chat_template:
            self._error(501, "not_supported_error", "This model has no chat template")
            return
        try:
            chat = _CHAT.decode(body)
        except msgspec.DecodeError as error:
            self._error(400, "invalid_request_error", str(error))
        else:
            self._reply(200, {"prompt": chatml(chat.messages, chat.tools)})

    def _set_fault(self, body: bytes) -> None:
        try:
            faults = _FAULTS.decode(body)
            self._engine.set_faults(faults if isinstance(faults, list) else [faults])
        except msgspec.DecodeError as error:
            self._error(400, "invalid_request_error", str(error))
        else:
            self._reply(200, {"status": "ok"})

    def _complete(self, body: bytes, read: Callable[[bytes], Completion]) -> None:
        try:
            request = read(body)
        except msgspec.ValidationError as error:
            self._error(400, "invalid_request_error", str(error))
            return
        except msgspec.DecodeError as error:
            self._error(500, "server_error", f"parse error: {error}")
            return
        fault = self._engine.take_fault(request.seed)
        if self._refuses(fault, tokens_of(request.prompt)):
            return
        try:
            generation = self._engine.submit(self, request, fault)
        except OverflowError:
            self._error(503, "unavailable_error", "no slot available")
            return
        if not generation.over:
            self._generation = generation
            generation.paused = self._paused

    def _result(
        self, decoder: msgspec.json.Decoder[EmbeddingsAsked] | msgspec.json.Decoder[RerankAsked], body: bytes
    ) -> None:
        try:
            asked: EmbeddingsAsked | RerankAsked = decoder.decode(body)
        except msgspec.DecodeError as error:
            self._error(400, "invalid_request_error", str(error))
            return
        fault = self._engine.take_result_fault()
        job = ResultJob(self._engine, self, asked, fault)
        if self._refuses(fault, job.prompt_tokens):
            return
        try:
            self._engine.enter(job, asked.id_slot)
        except OverflowError:
            self._error(503, "unavailable_error", "no slot available")
        else:
            self._generation = job

    def _refuses(self, fault: Fault | None, tokens: int) -> bool:
        """Whether the request is answered by an error."""
        if fault is not None and fault.kind is FaultKind.ERROR:
            self._error(500, "server_error", "fault injected")
        elif fault is not None and fault.kind is FaultKind.BUSY:
            self._error(503, "unavailable_error", "no slot available")
        elif fault is not None and fault.kind is FaultKind.ERROR_BODY:
            self._reply(200, {"error": {"code": 500, "message": "fault injected", "type": "server_error"}})
        elif fault is not None and fault.kind is FaultKind.PAGE:
            self._send(200, b"text/html", b"<html><body>an engine is not here</body></html>")
        elif tokens > self._engine.ctx:
            self._error(
                400,
                "exceed_context_size_error",
                f"the request exceeds the available context size ({tokens} tokens)",
                n_prompt_tokens=tokens,
                n_ctx=self._engine.ctx,
            )
        else:
            return False
        return True

    def _error(self, status: int, kind: str, message: str, **fields: int) -> None:
        self._reply(status, {"error": {"code": status, "message": message, "type": kind, **fields}})

    def _reply(self, status: int, value: object) -> None:
        self._send(status, b"application/json; charset=utf-8", msgspec.json.encode(value))

    def _send(self, status: int, kind: bytes, body: bytes) -> None:
        self.write(
            b"HTTP/1.1 %d %b\r\nServer: llorch-mock\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b"
            % (status, _REASONS.get(status, b"Service Unavailable"), kind, len(body), body)
        )
