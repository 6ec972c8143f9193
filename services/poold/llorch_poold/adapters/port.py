"""What the node asks of an engine, and how an engine can fail. One implementation per engine dialect.

    EngineFailure
    ├─ RequestRejected     the request cannot be served as written; never tried again
    │  └─ ContextFull      the prompt alone is over the context
    ├─ EngineBusy          the engine has no slot or is still loading; the task goes back
    └─ EngineBroke         reset, garbage, 5xx, a stream that ends without its last event or does not add up; the
                           task goes back

Token pieces: the sink gets one text for every token that the engine counted, so a token's index is its number in the
engine's own count. A token that yields no text of its own (the end-of-sequence token, half of a UTF-8 character, a
piece of a possible stop word) has the empty text. Joined, the texts are the engine's text; counted, they are
`tokens_out`. Of a workload with inputs each text is the result of one input (`core/results.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from llorch_shared.wire.task import ChatMessage, TaskRequest, Tool


class EngineFailure(Exception):
    """A generation did not come to its end."""


class RequestRejected(EngineFailure): ...


class ContextFull(RequestRejected): ...


class EngineBusy(EngineFailure): ...


class EngineBroke(EngineFailure): ...


class Health(NamedTuple):
    live: bool
    """It answers."""
    ready: bool
    """It takes work."""
    detail: str = ""


class Props(NamedTuple):
    slots_total: int
    model_path: str
    build: str
    tools: bool = False
    """The model's chat template takes tools, and renders calls of them."""


class Finish(NamedTuple):
    reason: str
    """`stop`, `length` or `tool_calls`."""
    tokens_in: int
    tokens_out: int
    stop_sequence: str | None = None
    """The stop word that ended the text, where the engine tells it."""


class TokenSink(Protocol):
    """Callbacks of one generation, in this order; the last one is `on_finish` or `on_failure`, none after an abort."""

    def on_begin(self) -> None:
        """The engine has taken the request."""

    def on_prompt(self, tokens_in: int) -> None:
        """Length of the prompt, as soon as the engine tells, and again whenever it has read a part of it: a sign of
        life before the first token. May never come."""

    def on_tokens(self, texts: Sequence[str], more: Sequence[bytes] = ()) -> None:
        """One text per token; all tokens of one read. `more`: empty, or for each token the further members of its
        event (`wire.frames.encode_token`), as tasks with tools and logprobs have them."""

    def on_finish(self, finish: Finish) -> None: ...

    def on_failure(self, failure: EngineFailure) -> None: ...


@dataclass(frozen=True, slots=True)
class GenerationCall:
    """One attempt of one task on one slot."""

    request: TaskRequest
    seed: int
    slot: int
    correlation_id: str
    first: int = 0
    """Of a workload with inputs: the first one to be asked for; those before it have their results."""


class Generation(Protocol):
    def abort(self) -> None:
        """Close the call; the sink hears nothing any more. That the slot is free must be asked for (`slot_free`)."""


class EngineAdapter(Protocol):
    async def health(self) -> Health: ...

    async def props(self) -> Props:
        """Raises EngineBroke."""

    async def version(self) -> str:
        """What the engine says it is; empty when it does not say."""

    async def kv_used_ratio(self) -> float:
        """Used share of the KV cache over all slots, 0 to 1. Raises EngineBroke."""

    async def counters(self) -> Mapping[str, float]:
        """The engine's own metrics without labels, by name. Raises EngineBroke."""

    async def slot_free(self, slot: int) -> bool:
        """Whether the engine itself says that this slot is idle. Raises EngineBroke."""

    async def erase_slot(self, slot: int) -> int:
        """Make it forget what it keeps of prompts and answers; returns how many tokens that was. Only of an idle slot:
        else the engine does it after the task in it. Raises EngineBroke."""

    async def prompt_tokens(self, prompt: str) -> int:
        """How many tokens this prompt is to the engine's own tokenizer. Raises EngineBroke."""

    async def render_chat(self, messages: Sequence[ChatMessage], tools: Sequence[Tool] = ()) -> str:
        """The prompt that the model's own chat template makes of a conversation, up to where the assistant's next turn
        begins. Raises RequestRejected where the template refuses it, EngineBroke."""

    def submit(self, call: GenerationCall, sink: TokenSink) -> Generation:
        """Start at once; never blocks, never raises. A request with tools is asked as a chat."""

    def pause(self, paused: bool) -> None:
        """Stop or resume reading what the engine generates."""

    async def close(self) -> None: ...
