"""Embeddings and rankings: a request as a task, and the frames of its stream as one answer.

Each token of such a task is the result of one input. A vector that is asked for as numbers goes into the answer as the
JSON that it came as.
"""

import base64
import struct
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from llorch_gateway.openai.core.errors import ParamError, unreadable
from llorch_gateway.openai.core.models import Pools, chosen
from llorch_gateway.openai.core.request import DEADLINE_MS, extended
from llorch_shared.errors import ErrorBody, ErrorCode, OrchError
from llorch_shared.guards import check_content
from llorch_shared.routing import Replicas
from llorch_shared.wire.frames import End, Event, Token, split_events
from llorch_shared.wire.openai_results import (
    Document,
    EmbeddingRequest,
    Ranked,
    Ranking,
    RerankRequest,
    ResultUsage,
    ResultWish,
)
from llorch_shared.wire.task import CTX_MAX, Determinism, Failover, Priority, TaskRequest, Workload

_UNSERVED: Final = ("dimensions", "max_chunks_per_doc", "max_tokens_per_doc", "rank_fields", "truncate_prompt_tokens")
_EMBEDDING: Final = msgspec.json.Decoder(EmbeddingRequest)
_RERANK: Final = msgspec.json.Decoder(RerankRequest)
_TOKENS: Final = msgspec.json.Decoder(Token)
_ENDS: Final = msgspec.json.Decoder(End)
_ERRORS: Final = msgspec.json.Decoder(ErrorBody)
_CANCELLED: Final = ErrorBody(code=ErrorCode.CANCELLED, message="the task of this answer was cancelled")
_encode: Final = msgspec.json.Encoder().encode


class _Vector(msgspec.Struct):
    embedding: msgspec.Raw


class _Score(msgspec.Struct):
    relevance_score: float


_VECTORS: Final = msgspec.json.Decoder(_Vector)
_NUMBERS: Final = msgspec.json.Decoder(list[float])
_SCORES: Final = msgspec.json.Decoder(_Score)


@dataclass(frozen=True, slots=True)
class AskedResults:
    """`model`: as the client names it."""

    task: TaskRequest
    wish: EmbeddingRequest | RerankRequest

    @property
    def model(self) -> str:
        return self.wish.model


def read_embedding(
    body: bytes, headers: Mapping[bytes, bytes], *, new_id: str, pools: Pools, replicas: Replicas
) -> AskedResults:
    """Raises ParamError."""
    try:
        wish = _EMBEDDING.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        refusal = unreadable(error)
        if refusal.param.startswith("input"):
            raise ParamError(
                refusal.param, str(error), hint="input is a text or a list of texts, not tokens"
            ) from error
        raise refusal from error
    inputs = (wish.input,) if isinstance(wish.input, str) else wish.input
    task = _task(wish, headers, Workload.EMBEDDING, None, inputs, new_id=new_id, pools=pools, replicas=replicas)
    return AskedResults(_checked(task, "input"), wish)


def read_rerank(
    body: bytes, headers: Mapping[bytes, bytes], *, new_id: str, pools: Pools, replicas: Replicas
) -> AskedResults:
    """Raises ParamError."""
    try:
        wish = _RERANK.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise unreadable(error) from error
    inputs = tuple(each if isinstance(each, str) else each.text for each in wish.documents)
    task = _task(wish, headers, Workload.RERANK, wish.query, inputs, new_id=new_id, pools=pools, replicas=replicas)
    return AskedResults(_checked(task, "query" if wish.query == "" else "documents"), wish)


def _task(
    wish: ResultWish,
    headers: Mapping[bytes, bytes],
    workload: Workload,
    prompt: str | None,
    inputs: tuple[str, ...],
    *,
    new_id: str,
    pools: Pools,
    replicas: Replicas,
) -> TaskRequest:
    """Raises ParamError."""
    for name in _UNSERVED:
        if getattr(wish, name, None) is not None:
            raise ParamError(name, f"{name} is not served here")
    extensions = extended(wish.llorch, headers)
    pool, placement = chosen(wish.model, pools, replicas, workload)
    task_id = (extensions.task_id or new_id).lower()
    return TaskRequest(
        task_id=task_id,
        session_id=(extensions.session or task_id).lower(),
        workload=workload,
        model_ref=pool.model,
        engine=pool.engine,
        ctx=min(pool.ctx, CTX_MAX),
        priority=extensions.priority or Priority.INTERACTIVE,
        max_tokens=max(1, len(inputs)),
        expected_tokens=len(inputs),
        deadline_ms=extensions.deadline_ms or DEADLINE_MS,
        determinism=Determinism.BEST_EFFORT,
        sampler_profile_version=pool.sampler_profile_version,
        prompt=prompt,
        inputs=inputs,
        placement=placement,
        failover=Failover(extensions.failover or Failover.RESUME),
    )


def _checked(task: TaskRequest, param: str) -> TaskRequest:
    """What a guard refuses has a name here. Raises ParamError."""
    try:
        check_content(task)
    except OrchError as error:
        raise ParamError(param, str(error), status=error.status) from error
    return task


class Results(ABC):
    """Collects the stream; `body` is the answer once it is `over` without an error."""

    def __init__(self, asked: AskedResults) -> None:
        self.asked: Final = asked
        self.over = False
        self.error: ErrorBody | None = None
        self._texts: list[str] = []
        self._end: End | None = None

    def feed(self, data: bytes) -> None:
        """Whole frames."""
        for event in split_events(data):
            if not self.over:
                self._take(event)

    @abstractmethod
    def body(self) -> bytes:
        """The answer as JSON."""

    def _take(self, event: Event) -> None:
        if event.event == "token":
            self._texts.append(_TOKENS.decode(event.data).t)
        elif event.event == "error":
            self._fails(_ERRORS.decode(event.data))
        elif event.event == "end":
            self._ends(_ENDS.decode(event.data))

    def _ends(self, end: End) -> None:
        inputs = self.asked.task.inputs or ()
        if end.finish_reason == "cancelled":
            self._fails(_CANCELLED)
        elif len(self._texts) != len(inputs):
            said = f"{len(self._texts)} results came of {len(inputs)} inputs"
            self._fails(ErrorBody(code=ErrorCode.INTERNAL, message=said))
        else:
            self.over, self._end = True, end

    def _fails(self, error: ErrorBody) -> None:
        self.over, self.error = True, error

    def _usage(self) -> ResultUsage:
        assert self._end is not None
        tokens = self._end.tokens_in or 0
        return ResultUsage(prompt_tokens=tokens, total_tokens=tokens)


class Vectors(Results):
    """POST /v1/embeddings."""

    def body(self) -> bytes:
        wish = self.asked.wish
        packed = isinstance(wish, EmbeddingRequest) and wish.encoding_format == "base64"
        vectors = (_VECTORS.decode(text).embedding for text in self._texts)
        data: list[dict[str, Any]] = [
            {"object": "embedding", "index": index, "embedding": in_base64(vector) if packed else vector}
            for index, vector in enumerate(vectors)
        ]
        return _encode({"object": "list", "data": data, "model": self.asked.model, "usage": self._usage()})


class Scores(Results):
    """POST /v1/rerank."""

    def body(self) -> bytes:
        wish, inputs = self.asked.wish, self.asked.task.inputs or ()
        assert isinstance(wish, RerankRequest)
        found = [
            Ranked(
                index=index,
                relevance_score=_SCORES.decode(text).relevance_score,
                document=Document(text=inputs[index]) if wish.return_documents else None,
            )
            for index, text in enumerate(self._texts)
        ]
        found.sort(key=lambda each: -each.relevance_score)
        return _encode(
            Ranking(
                id=f"rerank-{self.asked.task.task_id}",
                model=self.asked.model,
                results=tuple(found[: wish.top_n]),
                usage=self._usage(),
            )
        )


def in_base64(vector: msgspec.Raw) -> str:
    """Its numbers in single precision, little-endian."""
    numbers = _NUMBERS.decode(vector)
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode("ascii")
