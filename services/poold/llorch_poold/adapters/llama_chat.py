"""What llama-server answers to a chat with tools: frames of /v1/chat/completions in, tokens and pieces of calls out.

The engine parses its model's calls itself, so what arrives is not its tokens: markup comes as no frame at all, and one
token may come as several. Which token a frame belongs to is its `timings.predicted_n`; every token that the engine
counts becomes one token here, most of those inside a call with no text. Because markup is held back, a frame that got
lost cannot be told from it: what is checked is that the count only grows and that the stream comes to its end.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from llorch_poold.adapters.llama_stream import LlamaStream, Mismatch, Progress, StreamError, failure_of
from llorch_poold.adapters.port import EngineBroke, Finish, GenerationCall, TokenSink
from llorch_poold.sse_decode import BrokenStream
from llorch_shared.readable import UNREADABLE
from llorch_shared.wire.frames import TokenLogprob, ToolCallDelta
from llorch_shared.wire.task import Tool

DONE: Final = b"[DONE]"
_REASONS: Final = {"length": "length", "tool_calls": "tool_calls"}
_Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    tool_calls: list[ToolCallDelta] = []


class _Weights(msgspec.Struct, gc=False):
    content: list[TokenLogprob] = []


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta
    logprobs: _Weights | None = None
    finish_reason: str | None = None


class _Timings(msgspec.Struct, gc=False):
    predicted_n: _Count = 0


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: _Count
    completion_tokens: _Count


class _Frame(msgspec.Struct, gc=False):
    choices: list[_Choice] = []
    timings: _Timings | None = None
    usage: _Usage | None = None
    prompt_progress: Progress | None = None
    error: StreamError | None = None


_FRAME: Final = msgspec.json.Decoder(_Frame)
_encode: Final = msgspec.json.Encoder().encode


class LlamaChatStream(LlamaStream):
    """A token is passed on when the frame of a later one has come: several can speak of one."""

    __slots__ = ("_calls", "_last", "_reason", "_text", "_weight")

    def __init__(self, sink: TokenSink, *, tokens_max: int, top_logprobs: int | None = None) -> None:
        super().__init__(sink, tokens_max=tokens_max, top_logprobs=top_logprobs)
        self._last = 0
        """Number of the token that is being collected; 0 before the first."""
        self._text = ""
        self._calls: list[ToolCallDelta] = []
        self._weight: TokenLogprob | None = None
        """Of a token with text."""
        self._reason: str | None = None

    def _read(self, data: bytes) -> None:
        texts: list[str] = []
        more: list[bytes] = []
        try:
            for payload in self._decoder.feed(data):
                if payload == DONE:
                    raise Mismatch("the stream ends without its counts")
                frame = _FRAME.decode(payload)
                if frame.error is not None:
                    self._flush(texts, more)
                    self._fail(failure_of(frame.error))
                    return
                if frame.prompt_progress is not None:
                    self._sink.on_prompt(frame.prompt_progress.total)
                elif frame.choices:
                    self._take_choice(frame.choices[0], frame.timings, texts, more)
                elif frame.usage is not None:
                    self._finish_with(frame.usage, texts, more)
                    return
        except Mismatch as error:
            self._flush(texts, more)
            self._fail(EngineBroke(f"what the engine sent does not add up: {error}"))
        except (*UNREADABLE, BrokenStream) as error:
            self._flush(texts, more)
            self._fail(EngineBroke(f"the engine sent something that is not a chat frame: {error}"))
        else:
            self._flush(texts, more)

    def _take_choice(self, choice: _Choice, timings: _Timings | None, texts: list[str], more: list[bytes]) -> None:
        """Raises Mismatch."""
        self._reason = choice.finish_reason or self._reason
        said = choice.delta.content or ""
        if not said and not choice.delta.tool_calls:
            return
        if timings is None:
            raise Mismatch("a delta that does not say which token it is of")
        if timings.predicted_n < max(1, self._last):
            raise Mismatch(f"after token {self._last} came token {timings.predicted_n}")
        if timings.predicted_n > self._last:
            self._pass_on(timings.predicted_n, texts, more)
        self._text += said
        self._calls += choice.delta.tool_calls
        if said and choice.logprobs is not None and self._top is not None:
            for weight in choice.logprobs.content[:1]:
                self._weight = msgspec.structs.replace(weight, top_logprobs=weight.top_logprobs[: self._top])

    def _pass_on(self, number: int, texts: list[str], more: list[bytes]) -> None:
        """All tokens before `number`, which is collected from here on. Raises Mismatch."""
        if number > self._tokens_max + 1:
            raise Mismatch(f"token {number} of a generation of at most {self._tokens_max}")
        if self._last:
            texts.append(self._text)
            called = b',"tool_calls":%b' % _encode(self._calls) if self._calls else b""
            more.append(called + (b',"logprobs":%b' % _encode(self._weight) if self._weight is not None else b""))
        unsaid = number - self._last - 1
        texts += [""] * unsaid
        more += [b""] * unsaid
        self._last, self._text, self._calls, self._weight = number, "", [], None

    def _finish_with(self, usage: _Usage, texts: list[str], more: list[bytes]) -> None:
        """Raises Mismatch."""
        if self._reason is None:
            raise Mismatch("the engine counts an answer that it did not finish")
        if usage.completion_tokens < self._last:
            raise Mismatch(f"the engine counts {usage.completion_tokens} tokens and sent token {self._last}")
        self._pass_on(usage.completion_tokens + 1, texts, more)
        self._flush(texts, more)
        if self._ended:
            return
        self._ended = True
        self._sink.on_finish(
            Finish(
                reason=_REASONS.get(self._reason, "stop"),
                tokens_in=usage.prompt_tokens,
                tokens_out=usage.completion_tokens,
            )
        )


def chat_fields(call: GenerationCall) -> dict[str, Any]:
    """What a chat with tools says instead of a prompt. What it thinks is text like any other. llama-server refuses
    `logprobs` of a streamed chat with tools, and tells them when it is asked by its own name."""
    request = call.request
    parallel = request.parallel_tool_calls
    return {
        "messages": request.messages,
        "tools": offered(request.tools),
        "tool_choice": request.tool_choice,
        **({} if parallel is None else {"parallel_tool_calls": parallel}),
        "max_tokens": request.max_tokens,
        "reasoning_format": "none",
        "timings_per_token": True,
        "stream_options": {"include_usage": True},
    }


def offered(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Tools as chat endpoints and templates take them."""
    return [{"type": "function", "function": _function(tool)} for tool in tools]


def _function(tool: Tool) -> dict[str, Any]:
    return {
        "name": tool.name,
        "description": tool.description or "",
        "parameters": tool.parameters or {"type": "object", "properties": {}},
    }
