"""Embeddings as OpenAI's clients ask for them, and rankings as Jina's, Cohere's and vLLM's do.

The same rule as in `wire.openai`: what changes the answer is obeyed or refused by its name.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from llorch_shared.wire.openai import Extensions


class ResultWish(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What both have in common."""

    model: Annotated[str, Meta(min_length=1, max_length=512)]
    """A pool's model reference, or a pool's id."""
    llorch: Extensions | None = None
    user: Any = None


class EmbeddingRequest(ResultWish, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """POST /v1/embeddings."""

    input: str | tuple[str, ...]
    """A text, or up to 2,048. Texts that are tokens already are not taken."""
    encoding_format: Literal["float", "base64"] | None = None
    """`base64`: the numbers in single precision, little-endian. OpenAI's own client asks for it by itself."""
    dimensions: Any = None
    """Not served: a vector has as many numbers as its model gives it."""


class Embedding(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: tuple[float, ...] | str
    """A list of numbers, or these in base64."""


class ResultUsage(msgspec.Struct, frozen=True, kw_only=True):
    """The engine's own counts."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: tuple[Embedding, ...]
    """In the order of the inputs."""
    model: str
    usage: ResultUsage


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """What is ranked; fields beside its text are not looked at."""

    text: str


class RerankRequest(ResultWish, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """POST /v1/rerank."""

    query: str
    documents: tuple[str | Document, ...]
    """Up to 2,048."""
    top_n: Annotated[int, Meta(ge=1)] | None = None
    """So many of the best; absent: all."""
    return_documents: bool | None = None
    """Whether results hold the texts of their documents; absent: they do not."""
    max_chunks_per_doc: Any = None
    max_tokens_per_doc: Any = None
    rank_fields: Any = None
    truncate_prompt_tokens: Any = None


class Ranked(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    index: int
    """Of the document in the request."""
    relevance_score: float
    """As the model gives it: greater is nearer, its scale is the model's."""
    document: Document | None = None


class Ranking(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    """`rerank-` and the task's id."""
    model: str
    results: tuple[Ranked, ...]
    """The most relevant first."""
    usage: ResultUsage
