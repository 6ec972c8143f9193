"""llama-server's HTTP dialect: the native binary, the xllamacpp child and the mock engine alike.

Generations always stream and always ask for progress frames: only then does llama-server notice a closed socket
within one batch. The slot is chosen here (`id_slot`), so that "is it free?" is a question about one slot. No
`X-Conversation-Id` is ever sent: with it a closed socket would not cancel. What comes back is read in
`llama_stream.py`; workloads with inputs are asked and read in `llama_results.py`.
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from llorch_poold.adapters.llama_chat import LlamaChatStream, chat_fields, offered
from llorch_poold.adapters.llama_results import ResultStream
from llorch_poold.adapters.llama_stream import LlamaStream, told_error
from llorch_poold.adapters.port import (
    EngineBroke,
    Generation,
    GenerationCall,
    Health,
    Props,
    RequestRejected,
    TokenSink,
)
from llorch_poold.core.seed import SAMPLER_V1
from llorch_poold.engine_connection import EngineHttpError
from llorch_poold.engine_http import EngineHttp, Reply
from llorch_shared.readable import UNREADABLE
from llorch_shared.wire.task import ChatMessage, Determinism, KvHint, Sampling, Tool, Workload

PROBE_TIMEOUT_S: Final = 5.0
TEMPLATE_REFUSALS: Final = (400, 404, 500, 501)
"""Of /apply-template: a template that raises is a 400 or a 500 of llama-server, depending on where it does; an engine
without the route says 404 or 501."""


class _NextToken(msgspec.Struct):
    n_decoded: int = 0


class _Slot(msgspec.Struct):
    id: int
    n_ctx: int = 0
    is_processing: bool = False
    n_prompt_tokens_processed: int = 0
    n_prompt_tokens_cache: int = 0
    next_token: list[_NextToken] = []


class _Erased(msgspec.Struct):
    id_slot: int
    n_erased: int


class _TokensReply(msgspec.Struct):
    tokens: list[int]


class _PromptReply(msgspec.Struct):
    prompt: str


class _TemplateCaps(msgspec.Struct, frozen=True):
    supports_tools: bool = False
    supports_tool_calls: bool = False


class _PropsReply(msgspec.Struct):
    total_slots: int = 0
    model_path: str = ""
    build_info: str = ""
    chat_template_caps: _TemplateCaps = _TemplateCaps()


_SLOTS: Final = msgspec.json.Decoder(list[_Slot])
_PROPS: Final = msgspec.json.Decoder(_PropsReply)
_PROMPT: Final = msgspec.json.Decoder(_PromptReply)
_TOKENS: Final = msgspec.json.Decoder(_TokensReply)
_ERASED: Final = msgspec.json.Decoder(_Erased)


class LlamaCpp:
    """One engine process on loopback."""

    def __init__(self, http: EngineHttp) -> None:
        self._http: Final = http
        self._working: Final[set[int]] = set()
        """Slots of calls that no closed socket ends."""

    async def health(self) -> Health:
        try:
            reply = await self._http.request("GET", "/health", timeout_s=PROBE_TIMEOUT_S)
        except EngineHttpError as error:
            return Health(live=False, ready=False, detail=str(error))
        return Health(live=True, ready=reply.status == 200, detail="" if reply.status == 200 else _explain(reply))

    async def props(self) -> Props:
        reply = await self._request("GET", "/props")
        try:
            props = _PROPS.decode(reply.body)
        except UNREADABLE as error:
            raise EngineBroke(f"/props is not what llama-server answers: {error}") from error
        caps = props.chat_template_caps
        tools = caps.supports_tools and caps.supports_tool_calls
        return Props(props.total_slots, props.model_path, props.build_info, tools)

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
        return parse_counters((await self._request("GET", "/metrics")).body)

    async def slot_free(self, slot: int) -> bool:
        if slot in self._working:
            return False
        return not any(each.id == slot and each.is_processing for each in await self._slots())

    async def erase_slot(self, slot: int) -> int:
        reply = await self._request("POST", f"/slots/{slot}?action=erase")
        try:
            erased = _ERASED.decode(reply.body)
        except UNREADABLE as error:
            raise EngineBroke(f"the erasure of a slot is not answered as llama-server does: {error}") from error
        if erased.id_slot != slot:
            raise EngineBroke(f"the engine erased slot {erased.id_slot} instead of {slot}")
        return erased.n_erased

    async def prompt_tokens(self, prompt: str) -> int:
        body = msgspec.json.encode({"content": prompt, "add_special": True})
        reply = await self._request("POST", "/tokenize", body)
        try:
            return len(_TOKENS.decode(reply.body).tokens)
        except UNREADABLE as error:
            raise EngineBroke(f"/tokenize is not what llama-server answers: {error}") from error

    async def render_chat(self, messages: Sequence[ChatMessage], tools: Sequence[Tool] = ()) -> str:
        body = msgspec.json.encode({"messages": messages, **({"tools": offered(tools)} if tools else {})})
        try:
            reply = await self._http.request("POST", "/apply-template", body, timeout_s=PROBE_TIMEOUT_S)
        except EngineHttpError as error:
            raise EngineBroke(str(error)) from error
        if reply.status in TEMPLATE_REFUSALS:
            raise RequestRejected(f"the model's chat template does not take these messages: {_explain(reply)}")
        if reply.status != 200:
            raise EngineBroke(f"/apply-template answers {_explain(reply)}")
        try:
            return _PROMPT.decode(reply.body).prompt
        except UNREADABLE as error:
            raise EngineBroke(f"/apply-template is not what llama-server answers: {error}") from error

    def submit(self, call: GenerationCall, sink: TokenSink) -> Generation:
        if call.request.workload is not Workload.COMPLETION:
            return ResultStream(self._http, call, sink, self._working)
        request = call.request
        stream: LlamaStream
        if request.tools:
            path, stream = (
                "/v1/chat/completions",
                LlamaChatStream(sink, tokens_max=request.max_tokens, top_logprobs=request.top_logprobs),
            )
        else:
            path = "/completion"
            stream = LlamaStream(sink, tokens_max=request.max_tokens, top_logprobs=request.top_logprobs)
        stream.exchange = self._http.post(
            path, completion_body(call), stream, {"X-Correlation-Id": call.correlation_id}
        )
        return stream

    def pause(self, paused: bool) -> None:
        self._http.pause(paused)

    async def close(self) -> None:
        await self._http.close()

    async def _slots(self) -> list[_Slot]:
        reply = await self._request("GET", "/slots")
        try:
            return _SLOTS.decode(reply.body)
        except UNREADABLE as error:
            raise EngineBroke(f"/slots is not what llama-server answers: {error}") from error

    async def _request(self, method: str, path: str, body: bytes = b"") -> Reply:
        try:
            reply = await self._http.request(method, path, body, timeout_s=PROBE_TIMEOUT_S)
        except EngineHttpError as error:
            raise EngineBroke(str(error)) from error
        if reply.status != 200:
            raise EngineBroke(f"{path} answers {_explain(reply)}")
        return reply


def completion_body(call: GenerationCall) -> bytes:
    """The request of sampler profile v1, with what the task says instead. Strict tasks never start from a warm prefix:
    it changes sampled tokens."""
    request = call.request
    strict = request.determinism is Determinism.STRICT
    return msgspec.json.encode(
        {
            **_asked(call),
            "seed": call.seed,
            **SAMPLER_V1,
            **_sampling(request.sampling),
            **({} if request.response_schema is None else {"json_schema": request.response_schema}),
            "stream": True,
            "return_progress": True,
            "cache_prompt": not strict and request.kv_hint is not KvHint.COLD,
            "id_slot": call.slot,
        }
    )


def _asked(call: GenerationCall) -> dict[str, Any]:
    request = call.request
    probabilities = {} if request.top_logprobs is None else {"n_probs": max(1, request.top_logprobs)}
    if request.tools:
        return {**chat_fields(call), **probabilities}
    return {"prompt": request.prompt or "", "n_predict": request.max_tokens, **probabilities}


def _sampling(sampling: Sampling | None) -> dict[str, Any]:
    """llama-server has the same names for all of it; what is absent stays the profile's."""
    if sampling is None:
        return {}
    said = msgspec.structs.asdict(sampling)
    return {name: value for name, value in said.items() if value not in (None, ())}


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
    error = told_error(reply.body)
    return f"HTTP {reply.status}" if error is None else f"HTTP {reply.status}: {error.message}"
