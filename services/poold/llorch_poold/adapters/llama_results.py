"""Workloads with inputs, by /v1/embeddings and /v1/rerank: one input a call, one result each, in their order.

llama-server does not hear that the caller of such a route has left: it works on until it has an answer. So no call is
closed. A generation that is aborted asks for no more inputs, and its slot counts as busy until the answer to its last
call has come; one input a call keeps that short. A result is believed when it is one: for this input, of finite
numbers, as long as the ones before it. Anything else is a failure with its cause.
"""

import math
from typing import Final

import msgspec

from llorch_poold.adapters.llama_stream import failure_of, told_error
from llorch_poold.adapters.port import (
    ContextFull,
    EngineBroke,
    EngineBusy,
    EngineFailure,
    Finish,
    GenerationCall,
    RequestRejected,
    TokenSink,
)
from llorch_poold.core.results import embedding_text, score_text
from llorch_poold.engine_connection import EngineHttpError, Exchange
from llorch_poold.engine_http import EngineHttp
from llorch_shared.readable import UNREADABLE
from llorch_shared.wire.task import Workload

ANSWER_BYTES_MAX: Final = 4 * 1024 * 1024
DIMENSIONS_MAX: Final = 32_768
"""So many in decimal are half of the largest message on the bus."""
EMBEDDINGS_PATH: Final = "/v1/embeddings"
RERANK_PATH: Final = "/v1/rerank"
_TOO_LARGE: Final = "is too large to process"
"""How llama-server calls an input that does not fit into its batch, as a fault of its own."""


class _Usage(msgspec.Struct):
    prompt_tokens: int


class _Embedding(msgspec.Struct):
    embedding: list[float]
    index: int


class _Embeddings(msgspec.Struct):
    data: list[_Embedding]
    usage: _Usage


class _Score(msgspec.Struct):
    index: int
    relevance_score: float


class _Scores(msgspec.Struct):
    results: list[_Score]
    usage: _Usage


class _Mismatch(ValueError):
    """An answer that is no result of what was asked."""


_EMBEDDINGS: Final = msgspec.json.Decoder(_Embeddings)
_SCORES: Final = msgspec.json.Decoder(_Scores)


class ResultStream:
    """The calls of one task, from the input `call.first` on. `working` holds the slots that have not answered yet."""

    def __init__(self, http: EngineHttp, call: GenerationCall, sink: TokenSink, working: set[int]) -> None:
        self._http: Final = http
        self._call: Final = call
        self._inputs: Final = call.request.inputs or ()
        self._ranks: Final = call.request.workload is Workload.RERANK
        self._sink: Final = sink
        self._working: Final = working
        self._next = call.first
        self._tokens_in = 0
        self._dimensions = 0
        self._exchange: Exchange | None = None
        self._status = 0
        self._kind = ""
        self._body: list[bytes] = []
        self._size = 0
        self._ended = False
        self._ask()

    def abort(self) -> None:
        self._ended = True

    def on_head(self, status: int, kind: str) -> None:
        self._status, self._kind = status, kind

    def on_body(self, data: bytes) -> None:
        self._size += len(data)
        if self._size <= ANSWER_BYTES_MAX:
            self._body.append(data)
            return
        if self._exchange is not None:
            self._exchange.abort()
        self._answered()
        self._fail(EngineBroke(f"the engine's answer is over {ANSWER_BYTES_MAX} bytes"))

    def on_end(self) -> None:
        self._answered()
        if self._ended:
            return
        try:
            text, tokens = self._read(b"".join(self._body))
        except EngineFailure as failure:
            self._fail(failure)
        except _Mismatch as error:
            self._fail(EngineBroke(f"what the engine answered for input {self._next} does not fit: {error}"))
        except UNREADABLE as error:
            self._fail(EngineBroke(f"the engine's answer for input {self._next} is no result: {error}"))
        else:
            self._take(text, tokens)

    def on_error(self, error: EngineHttpError) -> None:
        self._answered()
        self._fail(EngineBroke(str(error)))

    def _ask(self) -> None:
        request, text = self._call.request, self._inputs[self._next]
        asked = {"query": request.prompt, "documents": [text]} if self._ranks else {"input": text}
        path = RERANK_PATH if self._ranks else EMBEDDINGS_PATH
        body = msgspec.json.encode({**asked, "model": request.model_ref, "id_slot": self._call.slot})
        self._body, self._size = [], 0
        self._working.add(self._call.slot)
        self._exchange = self._http.post(path, body, self, {"X-Correlation-Id": self._call.correlation_id})

    def _read(self, body: bytes) -> tuple[str, int]:
        """The result as its token says it, and the tokens of its input. Raises EngineFailure, _Mismatch and what
        decoding raises."""
        if self._status != 200:
            raise _refusal(self._next, self._status, body)
        error = told_error(body)
        if error is not None:
            raise failure_of(error)
        text, tokens = self._score(body) if self._ranks else self._vector(body)
        if tokens < 0:
            raise _Mismatch(f"it counts {tokens} tokens")
        if tokens > self._call.request.ctx:
            raise RequestRejected(f"input {self._next} has {tokens} tokens, the task's ctx is {self._call.request.ctx}")
        return text, tokens

    def _vector(self, body: bytes) -> tuple[str, int]:
        answer = _EMBEDDINGS.decode(body)
        if len(answer.data) != 1 or answer.data[0].index != 0:
            raise _Mismatch("it is not the one vector of the one input")
        vector = answer.data[0].embedding
        if not 0 < len(vector) <= DIMENSIONS_MAX or self._dimensions not in (0, len(vector)):
            raise _Mismatch(f"a vector of {len(vector)} numbers after one of {self._dimensions}")
        if not all(map(math.isfinite, vector)):
            raise _Mismatch("a number of the vector is not finite")
        self._dimensions = len(vector)
        tokens = answer.usage.prompt_tokens
        return embedding_text(self._next, vector, tokens), tokens

    def _score(self, body: bytes) -> tuple[str, int]:
        answer = _SCORES.decode(body)
        if len(answer.results) != 1 or answer.results[0].index != 0:
            raise _Mismatch("it is not the one score of the one document")
        score = answer.results[0].relevance_score
        if not math.isfinite(score):
            raise _Mismatch("the score is not finite")
        tokens = answer.usage.prompt_tokens
        return score_text(self._next, score, tokens), tokens

    def _take(self, text: str, tokens: int) -> None:
        if self._next == self._call.first:
            self._sink.on_begin()
        self._next += 1
        self._tokens_in += tokens
        self._sink.on_prompt(self._tokens_in)
        if not self._ended:
            self._sink.on_tokens((text,))
        if self._ended:
            return
        if self._next < len(self._inputs):
            self._ask()
            return
        self._ended = True
        self._sink.on_finish(Finish("stop", tokens_in=self._tokens_in, tokens_out=self._next - self._call.first))

    def _answered(self) -> None:
        self._exchange = None
        self._working.discard(self._call.slot)

    def _fail(self, failure: EngineFailure) -> None:
        if not self._ended:
            self._ended = True
            self._sink.on_failure(failure)


def _refusal(number: int, status: int, body: bytes) -> EngineFailure:
    error = told_error(body)
    if error is None:
        return EngineBroke(f"the engine answered HTTP {status}")
    if status == 503:
        return EngineBusy(error.message or "the engine has no slot")
    failure = failure_of(error, status)
    if isinstance(failure, ContextFull) or _TOO_LARGE in error.message:
        return RequestRejected(f"input {number} does not fit the pool's context: {error.message}")
    return failure
