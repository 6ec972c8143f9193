"""Embeddings and rankings: a request as a task, and the frames of its stream as one answer.

Each token of such a task is the result of one input. A vector that is asked for as numbers goes into the answer as the
JSON that it came as. The answer is kept in the parts that it is sent in.
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
from llorch_shared.readable import UNREADABLE
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
_OTHERS: Final = ErrorBody(
    code=ErrorCode.INVALID_PARAMS,
    message="the task of this id has no such results: it is a task of another request",
    hint="the same task id is the same task for 72 hours; take a fresh UUID for another",
)
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
    """`model`: as the client names it. `named`: its client named the task, which may be there already."""

    task: TaskRequest
    wish: EmbeddingRequest | RerankRequest
    named: bool

    @property
    def model(self) -> str:
        return self.wish.model


def read_embedding(
    body: bytes, headers: Mapping[bytes, bytes], *, new_id: str, pools: Pools, replicas: Replicas
) -> AskedResults:
    """Raises ParamError."""
    try:
        wish = _EMBEDDING.decode(body)
    except UNREADABLE as error:
        refusal = unreadable(error)
        if refusal.param.startswith("input"):
            raise ParamError(
                refusal.param, str(error), hint="input is a text or a list of texts, not tokens"
            ) from error
        raise refusal from error
    inputs = (wish.input,) if isinstance(wish.input, str) else wish.input
    task = _task(wish, headers, Workload.EMBEDDING, None, inputs, new_id=new_id, pools=pools, replicas=replicas)
    return AskedResults(_checked(task, "input"), wish, named=task.task_id != new_id)


def read_rerank(
    body: bytes, headers: Mapping[bytes, bytes], *, new_id: str, pools: Pools, replicas: Replicas
) -> AskedResults:
    """Raises ParamError."""
    try:
        wish = _RERANK.decode(body)
    except UNREADABLE as error:
        raise unreadable(error) from error
    inputs = tuple(each if isinstance(each, str) else each.text for each in wish.documents)
    task = _task(wish, headers, Workload.RERANK, wish.query, inputs, new_id=new_id, pools=pools, replicas=replicas)
    return AskedResults(
        _checked(task, "query" if wish.query == "" else "documents"), wish, named=task.task_id != new_id
    )


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
    """Collects the stream; `parts` are the answer once it is `over` without an error."""

    def __init__(self, asked: AskedResults) -> None:
        self.asked: Final = asked
        self.over = False
        self.error: ErrorBody | None = None
        self._kept = 0
        self._count = 0
        self._end: End | None = None

    @property
    def held(self) -> int:
        """Bytes that it keeps, or will when all results are as large as those that have come."""
        wanted = len(self.asked.task.inputs or ())
        return self._kept * wanted // self._count if self._count else 0

    def feed(self, data: bytes) -> None:
        """Whole frames."""
        for event in split_events(data):
            if not self.over:
                self._take(event)

    @abstractmethod
    def parts(self) -> list[bytes]:
        """The answer as JSON."""

    @abstractmethod
    def _keep(self, index: int, text: str) -> int:
        """The result of an input. Returns the bytes that are kept of it. Raises MsgspecError when it is none."""

    def _take(self, event: Event) -> None:
        if event.event == "token":
            try:
                self._kept += self._keep(self._count, _TOKENS.decode(event.data).t)
            except msgspec.MsgspecError:
                self._fails(self._not_these("what is no result came of an input"))
            self._count += 1
        elif event.event == "error":
            self._fails(_ERRORS.decode(event.data))
        elif event.event == "end":
            self._ends(_ENDS.decode(event.data))

    def _ends(self, end: End) -> None:
        inputs = self.asked.task.inputs or ()
        if end.finish_reason == "cancelled":
            self._fails(_CANCELLED)
        elif self._count != len(inputs):
            self._fails(self._not_these(f"{self._count} results came of {len(inputs)} inputs"))
        else:
            self.over, self._end = True, end

    def _not_these(self, said: str) -> ErrorBody:
        """The same task id is the same task: whoever names one that is there gets what that one says."""
        return _OTHERS if self.asked.named else ErrorBody(code=ErrorCode.INTERNAL, message=said)

    def _fails(self, error: ErrorBody) -> None:
        self.over, self.error = True, error

    def _usage(self) -> ResultUsage:
        assert self._end is not None
        tokens = self._end.tokens_in or 0
        return ResultUsage(prompt_tokens=tokens, total_tokens=tokens)


class Vectors(Results):
    """POST /v1/embeddings."""

    def __init__(self, asked: AskedResults) -> None:
        super().__init__(asked)
        self._packed: Final = isinstance(asked.wish, EmbeddingRequest) and asked.wish.encoding_format == "base64"
        self._data: list[bytes] = []

    def parts(self) -> list[bytes]:
        tail = _encode({"model": self.asked.model, "usage": self._usage()})
        return [b'{"object":"list","data":[', *self._data, b"]," + tail[1:]]

    def _keep(self, index: int, text: str) -> int:
        vector = _VECTORS.decode(text).embedding
        told: Any = in_base64(vector) if self._packed else vector
        data = _encode({"object": "embedding", "index": index, "embedding": told})
        self._data.append(b"," + data if index else data)
        return len(data)


class Scores(Results):
    """POST /v1/rerank."""

    def __init__(self, asked: AskedResults) -> None:
        super().__init__(asked)
        self._scores: list[float] = []

    def parts(self) -> list[bytes]:
        wish, inputs = self.asked.wish, self.asked.task.inputs or ()
        assert isinstance(wish, RerankRequest)
        found = [
            Ranked(
                index=index,
                relevance_score=score,
                document=Document(text=inputs[index]) if wish.return_documents else None,
            )
            for index, score in enumerate(self._scores)
        ]
        found.sort(key=lambda each: -each.relevance_score)
        return [
            _encode(
                Ranking(
                    id=f"rerank-{self.asked.task.task_id}",
                    model=self.asked.model,
                    results=tuple(found[: wish.top_n]),
                    usage=self._usage(),
                )
            )
        ]

    def _keep(self, index: int, text: str) -> int:
        """What its documents are was counted when they came."""
        self._scores.append(_SCORES.decode(text).relevance_score)
        return 0


def in_base64(vector: msgspec.Raw) -> str:
    """Its numbers in single precision, little-endian."""
    numbers = _NUMBERS.decode(vector)
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode("ascii")
