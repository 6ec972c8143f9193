"""llama-server's HTTP dialect: the native binary, the xllamacpp child and the mock engine alike.

Generations always stream and always ask for progress frames: only then does llama-server notice a closed socket
within one batch. The slot is chosen here (`id_slot`), so that "is it free?" is a question about one slot. No
`X-Conversation-Id` is ever sent: with it a closed socket would not cancel. Errors are read from the status and from
`error` frames in the stream.
"""

from typing import Final

import msgspec

from llorch_poold.adapters.port import (
    EngineBroke,
    EngineBusy,
    EngineFailure,
    Finish,
    Generation,
    GenerationCall,
    Health,
    Props,
    RequestRejected,
    TokenSink,
)
from llorch_poold.core.seed import SAMPLER_V1
from llorch_poold.engine_http import EngineHttp, EngineHttpError, Exchange, Reply
from llorch_poold.sse_decode import SseDecoder, StreamTooLong
from llorch_shared.wire.task import Determinism, KvHint

PROBE_TIMEOUT_S: Final = 5.0
ERROR_BYTES_MAX: Final = 64 * 1024


class _Progress(msgspec.Struct, gc=False):
    total: int = 0


class _Error(msgspec.Struct, gc=False):
    message: str = ""
    type: str = ""
    n_prompt_tokens: int = 0
    n_ctx: int = 0


class _Frame(msgspec.Struct, gc=False):
    content: str = ""
    stop: bool = False
    tokens_predicted: int = 0
    prompt_progress: _Progress | None = None
    stop_type: str = ""
    tokens_evaluated: int = 0
    error: _Error | None = None


class _ErrorReply(msgspec.Struct):
    error: _Error


class _NextToken(msgspec.Struct):
    n_decoded: int = 0


class _Slot(msgspec.Struct):
    id: int
    n_ctx: int = 0
    is_processing: bool = False
    n_prompt_tokens_processed: int = 0
    n_prompt_tokens_cache: int = 0
    next_token: list[_NextToken] = []


class _PropsReply(msgspec.Struct):
    total_slots: int = 0
    model_path: str = ""
    build_info: str = ""


_FRAME: Final = msgspec.json.Decoder(_Frame)
_ERROR: Final = msgspec.json.Decoder(_ErrorReply)
_SLOTS: Final = msgspec.json.Decoder(list[_Slot])
_PROPS: Final = msgspec.json.Decoder(_PropsReply)


class LlamaCpp:
    """One engine process on loopback."""

    def __init__(self, http: EngineHttp) -> None:
        self._http: Final = http

    async def health(self) -> Health:
        try:
            reply = await self._http.request("GET", "/health", timeout_s=PROBE_TIMEOUT_S)
        except EngineHttpError as error:
            return Health(live=False, ready=False, detail=str(error))
        return Health(live=True, ready=reply.status == 200, detail="" if reply.status == 200 else _explain(reply))

    async def props(self) -> Props:
        reply = await self._get("/props")
        try:
            props = _PROPS.decode(reply.body)
        except msgspec.DecodeError as error:
            raise EngineBroke(f"/props is not what llama-server answers: {error}") from error
        return Props(props.total_slots, props.model_path, props.build_info)

    async def version(self) -> str:
        return (await self.props()).build

    async def kv_used_ratio(self) -> float:
        slots = await self._slots()
        used = sum(
            slot.n_prompt_tokens_processed
            + slot.n_prompt_tokens_cache
            + sum(next_token.n_decoded for next_token in slot.next_token)
            for slot in slots
            if slot.is_processing
        )
        room = sum(slot.n_ctx for slot in slots)
        return min(1.0, used / room) if room else 0.0

    async def counters(self) -> dict[str, float]:
        return parse_counters((await self._get("/metrics")).body)

    async def slot_free(self, slot: int) -> bool:
        return not any(each.id == slot and each.is_processing for each in await self._slots())

    def submit(self, call: GenerationCall, sink: TokenSink) -> Generation:
        stream = LlamaStream(sink)
        stream.exchange = self._http.post(
            "/completion", completion_body(call), stream, {"X-Correlation-Id": call.correlation_id}
        )
        return stream

    def pause(self, paused: bool) -> None:
        self._http.pause(paused)

    async def close(self) -> None:
        await self._http.close()

    async def _slots(self) -> list[_Slot]:
        reply = await self._get("/slots")
        try:
            return _SLOTS.decode(reply.body)
        except msgspec.DecodeError as error:
            raise EngineBroke(f"/slots is not what llama-server answers: {error}") from error

    async def _get(self, path: str) -> Reply:
        try:
            reply = await self._http.request("GET", path, timeout_s=PROBE_TIMEOUT_S)
        except EngineHttpError as error:
            raise EngineBroke(str(error)) from error
        if reply.status != 200:
            raise EngineBroke(f"{path} answers {_explain(reply)}")
        return reply


def completion_body(call: GenerationCall) -> bytes:
    """The request of sampler profile v1. Strict tasks never start from a warm prefix: it changes sampled tokens."""
    request = call.request
    strict = request.determinism is Determinism.STRICT
    return msgspec.json.encode(
        {
            "prompt": request.prompt or "",
            "n_predict": request.max_tokens,
            "seed": call.seed,
            **SAMPLER_V1,
            "stream": True,
            "return_progress": True,
            "cache_prompt": not strict and request.kv_hint is not KvHint.COLD,
            "id_slot": call.slot,
        }
    )


class LlamaStream:
    """One generation on its way: HTTP body in, tokens out."""

    __slots__ = ("_count", "_decoder", "_ended", "_errors", "_sink", "_status", "_told_prompt", "exchange")

    def __init__(self, sink: TokenSink) -> None:
        self.exchange: Exchange | None = None
        self._sink: Final = sink
        self._decoder: Final = SseDecoder()
        self._count = 0
        self._status = 0
        self._errors = b""
        self._ended = False
        self._told_prompt = False

    def abort(self) -> None:
        self._ended = True
        if self.exchange is not None:
            self.exchange.abort()

    def on_head(self, status: int) -> None:
        self._status = status
        if status == 200:
            self._sink.on_begin()

    def on_body(self, data: bytes) -> None:
        if self._status != 200:
            if len(self._errors) < ERROR_BYTES_MAX:
                self._errors += data
            return
        texts: list[str] = []
        try:
            for payload in self._decoder.feed(data):
                frame = _FRAME.decode(payload)
                if frame.prompt_progress is not None:
                    self._tell_prompt(frame.prompt_progress.total)
                elif frame.stop:
                    self._finish(frame, texts)
                    return
                elif frame.error is not None:
                    self._flush(texts)
                    self._fail(failure_of(frame.error))
                    return
                else:
                    self._take(frame, texts)
        except (msgspec.DecodeError, StreamTooLong) as error:
            self._flush(texts)
            self._fail(EngineBroke(f"the engine sent something that is not a completion frame: {error}"))
            return
        self._flush(texts)

    def on_end(self) -> None:
        if self._status != 200:
            self._fail(refusal(Reply(self._status, self._errors)))
        elif not self._ended:
            self._fail(EngineBroke("the engine ended the stream without its last frame"))

    def on_error(self, error: EngineHttpError) -> None:
        self._fail(EngineBroke(str(error)))

    def _tell_prompt(self, tokens_in: int) -> None:
        if not self._told_prompt:
            self._told_prompt = True
            self._sink.on_prompt(tokens_in)

    def _take(self, frame: _Frame, texts: list[str]) -> None:
        """A frame stands for the tokens up to its `tokens_predicted`: earlier ones that sent no frame have no text."""
        missing = frame.tokens_predicted - self._count - len(texts)
        if missing > 1:
            texts.extend([""] * (missing - 1))
        elif missing < 1 and not frame.content:
            return
        texts.append(frame.content)

    def _finish(self, frame: _Frame, texts: list[str]) -> None:
        if frame.content:
            self._take(frame, texts)
        missing = frame.tokens_predicted - self._count - len(texts)
        if missing > 0:
            texts.extend([""] * missing)
        self._flush(texts)
        if self._ended:
            return
        if self._count != frame.tokens_predicted:
            self._fail(EngineBroke(f"the engine counts {frame.tokens_predicted} tokens and sent {self._count}"))
            return
        self._ended = True
        self._sink.on_finish(
            Finish(
                reason="length" if frame.stop_type == "limit" else "stop",
                tokens_in=frame.tokens_evaluated,
                tokens_out=frame.tokens_predicted,
            )
        )

    def _flush(self, texts: list[str]) -> None:
        if texts and not self._ended:
            self._count += len(texts)
            self._sink.on_tokens(texts)

    def _fail(self, failure: EngineFailure) -> None:
        if self._ended:
            return
        self._ended = True
        if self.exchange is not None:
            self.exchange.abort()
        self._sink.on_failure(failure)


def refusal(reply: Reply) -> EngineFailure:
    """What an error status of /completion means for the task (ENGINES 1.5)."""
    try:
        error = _ERROR.decode(reply.body).error
    except msgspec.DecodeError:
        return EngineBroke(f"the engine answered HTTP {reply.status}")
    if reply.status == 503:
        return EngineBusy(error.message or "the engine has no slot")
    return failure_of(error, reply.status)


def failure_of(error: _Error, status: int = 0) -> EngineFailure:
    if error.type == "exceed_context_size_error":
        return RequestRejected(f"the prompt has {error.n_prompt_tokens} tokens, the pool's context holds {error.n_ctx}")
    if error.type == "invalid_request_error":
        return RequestRejected(f"the engine refuses the request: {error.message}")
    if error.type == "unavailable_error":
        return EngineBusy(error.message)
    return EngineBroke(f"the engine failed{f' with HTTP {status}' if status else ''}: {error.message}")


def parse_counters(text: bytes) -> dict[str, float]:
    """Samples without labels of a Prometheus page; names may hold `:`."""
    counters: dict[str, float] = {}
    for line in text.decode("utf-8", "replace").splitlines():
        name, _, value = line.partition(" ")
        if name and not name.startswith("#") and "{" not in name:
            try:
                counters[name] = float(value)
            except ValueError:
                continue
    return counters


def _explain(reply: Reply) -> str:
    try:
        return f"HTTP {reply.status}: {_ERROR.decode(reply.body).error.message}"
    except msgspec.DecodeError:
        return f"HTTP {reply.status}"
