"""Embeddings and scores of the mock engine, as llama-server answers /v1/embeddings and /v1/rerank.

The vector of a text follows from its words alone: each word has one of its own, and a text the sum of them, of length
1. So texts that share words are near each other, and the score of a document is how near it is to the query. A result
takes a slot and the time of one token. As with llama-server, an answer is made although its caller has left.
"""

import asyncio
import hashlib
import math
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from llorch_poold.mock_faults import BROKEN, Fault, FaultKind
from llorch_poold.mock_frames import chunk
from llorch_poold.mock_generation import Socket
from llorch_poold.mock_slots import MockEngine
from llorch_poold.mock_text import tokens_of

DIMENSIONS: Final = 64
_FLOOD: Final = b"x" * 65536
_WHOLE: Final = {
    FaultKind.GARBAGE: BROKEN[FaultKind.GARBAGE],
    FaultKind.UTF8: b'{"data":[{"embedding":[0.5],"index":0,"object":"\xff\xfe"}],"usage":{"prompt_tokens":1}}',
    FaultKind.GAP: b'{"data":[],"results":[],"usage":{"prompt_tokens":1}}',
    FaultKind.MISCOUNT: (
        b'{"data":[{"embedding":[0.5],"index":7}],"results":[{"index":7,"relevance_score":0.5}],'
        b'"usage":{"prompt_tokens":1}}'
    ),
    FaultKind.DRIFT: b'{"data":[{"embedding":[0.5],"index":0}],"results":[],"usage":{"prompt_tokens":1}}',
    FaultKind.NAN: (
        b'{"data":[{"embedding":[0.5,null],"index":0}],"results":[{"index":0,"relevance_score":null}],'
        b'"usage":{"prompt_tokens":1}}'
    ),
    FaultKind.FAIL: b'{"error":{"code":500,"message":"fault injected","type":"server_error"}}',
}
"""What is answered in place of a result."""


class EmbeddingsAsked(msgspec.Struct, kw_only=True):
    """The fields of POST /v1/embeddings that the mock obeys."""

    input: str | list[str]
    id_slot: int = -1


class RerankAsked(msgspec.Struct, kw_only=True):
    """The fields of POST /v1/rerank that the mock obeys."""

    query: str
    documents: list[str]
    id_slot: int = -1


def vector_of(text: str) -> list[float]:
    """Of length 1, in single precision as engines compute."""
    total = [0.0] * DIMENSIONS
    for word in text.lower().split() or [""]:
        for place, byte in enumerate(hashlib.sha512(word.encode()).digest()):
            total[place] += byte - 127.5
    length = math.sqrt(sum(number * number for number in total))
    return [float(f"{number / length:.8g}") for number in total]


def nearness(one: Sequence[float], other: Sequence[float]) -> float:
    """Cosine of two vectors of length 1."""
    return sum(a * b for a, b in zip(one, other, strict=True))


def embeddings(asked: EmbeddingsAsked) -> dict[str, Any]:
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    data = [{"embedding": vector_of(text), "index": index, "object": "embedding"} for index, text in enumerate(texts)]
    return {"model": "mock", "object": "list", "usage": _usage(sum(map(tokens_of, texts))), "data": data}


def scores(asked: RerankAsked) -> dict[str, Any]:
    query = vector_of(asked.query)
    found = [
        {"index": index, "relevance_score": nearness(query, vector_of(text))}
        for index, text in enumerate(asked.documents)
    ]
    count = sum(tokens_of(asked.query) + tokens_of(text) for text in asked.documents)
    return {"model": "mock", "object": "list", "usage": _usage(count), "results": found}


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": tokens, "total_tokens": tokens}


class ResultJob:
    """One call in one slot, from its request to its answer."""

    def __init__(
        self, engine: MockEngine, socket: Socket, asked: EmbeddingsAsked | RerankAsked, fault: Fault | None
    ) -> None:
        texts = asked.documents if isinstance(asked, RerankAsked) else [asked.input]
        self._engine: Final = engine
        self._socket: Socket | None = socket
        self._asked: Final = asked
        self._kind: Final = fault.kind if fault is not None else FaultKind.NONE
        self._loop: Final = asyncio.get_running_loop()
        self.prompt = "\n".join(str(text) for text in texts)
        self.prompt_tokens = self.prompt_read = tokens_of(self.prompt)
        self.cached = self.sent = 0
        self.total = len(texts)
        self.slot = -1
        self.log_number = 0

    def begin(self) -> None:
        """Its slot is its own."""
        if self._kind is FaultKind.HANG:
            return
        rate = self._engine.rate
        self._loop.call_later(self._engine.prefill_s + (self.total / rate if rate else 0), self._finish)

    def reader_left(self) -> None:
        self._socket = None

    def resume(self) -> None:
        """Its answer is one write."""

    def _finish(self) -> None:
        socket = self._socket
        if self._kind is FaultKind.FLOOD:
            self._flood()
            return
        self.sent = self.total
        self._engine.leave(self)
        if socket is None:
            return
        if self._kind in (FaultKind.RESET, FaultKind.EOF):
            socket.cut()
            return
        body = _WHOLE.get(self._kind)
        if body is None:
            made = scores(self._asked) if isinstance(self._asked, RerankAsked) else embeddings(self._asked)
            body = msgspec.json.encode(made)
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: %d\r\n\r\n"
        socket.write(head % len(body) + body)
        socket.ended()

    def _flood(self) -> None:
        """Until the reader leaves."""
        if self._socket is None:
            self._engine.leave(self)
            return
        if not self.sent:
            self.sent = 1
            self._socket.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
        self._socket.write(chunk(_FLOOD))
        self._loop.call_later(0.001, self._flood)
