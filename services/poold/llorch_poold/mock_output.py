"""What a generation of the mock engine says: settled by its request before its first word, whenever that is sent.

The text follows from prompt and seed (`mock_text.text_of`). With stamps on, each word is the monotonic clock in
microseconds instead.
"""

from typing import Any, Final

import msgspec

from llorch_poold.mock_chat import ChatWish, call_deltas, frame, last_frames
from llorch_poold.mock_chat import progress as chat_progress
from llorch_poold.mock_faults import MISCOUNTED, Fault, FaultKind
from llorch_poold.mock_frames import frames, stamped_frames, weighed_frame, weights, word_frame
from llorch_poold.mock_text import cut_at, digest, stop_in, text_of, tokens_of


class Completion(msgspec.Struct, kw_only=True):
    """The fields of POST /completion that the mock obeys."""

    prompt: str
    n_predict: int = 16
    seed: int = 0
    stream: bool = False
    return_progress: bool = False
    cache_prompt: bool = True
    id_slot: int = -1
    stop: tuple[str, ...] = ()
    n_probs: int = 0
    chat: bool = False
    """It came as a chat with tools, and is answered as one."""
    tool: dict[str, Any] | None = None
    """The one that is called."""


def asked_as_chat(wish: ChatWish) -> Completion:
    return Completion(
        prompt=wish.prompt,
        n_predict=wish.max_tokens,
        seed=wish.seed,
        stream=wish.stream,
        return_progress=wish.return_progress,
        cache_prompt=wish.cache_prompt,
        n_probs=wish.n_probs,
        id_slot=wish.id_slot,
        chat=True,
        tool=wish.tools[0] if wish.calls else None,
    )


class Output:
    """In frames as llama-server sends them. `fault` may make them wrong."""

    def __init__(self, request: Completion, fault: Fault | None, *, stamp: bool) -> None:
        self._request: Final = request
        self._fault: Final = fault
        self._kind: Final = fault.kind if fault is not None else FaultKind.NONE
        self._stamp: Final = stamp
        self.prompt_tokens: Final = tokens_of(request.prompt)
        self._first: Final = digest(request.prompt, request.seed)
        self._call: Final = call_deltas(request.tool, self._first) if request.tool is not None else []
        wanted = len(self._call) or _directive(request.prompt)
        total = request.n_predict if wanted is None else min(wanted, request.n_predict)
        text = text_of(request.prompt, request.seed, total)
        self._stop: Final = stop_in(text, request.stop)
        self._cut: Final = cut_at(text, request.stop) if request.stop else None
        """The texts before a stop word; None where there is none."""
        self._reason: Final = (
            "word" if self._cut else "limit" if wanted is None or wanted > request.n_predict else "eos"
        )
        self.total: Final = len(self._cut) if self._cut else total
        odd = request.chat or request.n_probs or stamp or self._cut is not None
        self._plain: Final = not odd and self._kind not in (FaultKind.DRIFT, FaultKind.GAP)
        """Every frame but the first is one that is kept."""

    def progress(self, read: int) -> bytes:
        """That so many tokens of the prompt are read."""
        if self._request.chat:
            return chat_progress(self.prompt_tokens, read)
        return (
            b'data: {"index":0,"content":"","tokens":[0],"stop":false,"id_slot":-1,"tokens_predicted":0,'
            b'"prompt_progress":{"total":%d,"cache":0,"processed":%d,"time_ms":1}}\n\n'
        ) % (self.prompt_tokens, read)

    def frames(self, first: int, count: int) -> bytes:
        """Of `count` tokens from `first` on."""
        if self._plain and first:
            return frames(first, count)
        places = range(first, first + count)
        if self._request.chat:
            return b"".join(self._chat_frame(index) for index in places)
        if self._request.n_probs:
            return b"".join(weighed_frame(index, self._word(index), self._request.n_probs) for index in places)
        if self._stamp:
            return stamped_frames(first, count)
        if self._fault is not None and self._kind is FaultKind.DRIFT and first >= self._fault.after:
            return b"".join(word_frame(index, f" d{index}") for index in places)
        if self._fault is not None and self._kind is FaultKind.GAP and first <= self._fault.after < first + count:
            return b"".join(word_frame(index, self._word(index)) for index in places if index != self._fault.after)
        if self._cut is not None:
            return b"".join(word_frame(index, self._cut[index]) for index in places)
        if first:
            return frames(first, count)
        head = word_frame(0, self._word(0))
        return head + frames(1, count - 1) if count > 1 else head

    def last_frames(self, *, slot: int, cached: int) -> bytes:
        """`cached`: tokens of the prompt that the slot held already."""
        if not self._request.chat:
            return b"data: %b\n\n" % msgspec.json.encode(self._last("", slot, cached))
        reason = "length" if self._reason == "limit" else "tool_calls" if self._call else "stop"
        return last_frames(reason, tokens_in=self.prompt_tokens, tokens_out=self.total)

    def whole(self, *, slot: int, cached: int) -> bytes:
        """As one JSON text, for who wants no stream."""
        request = self._request
        text = "".join(self._cut) if self._cut else text_of(request.prompt, request.seed, self.total)
        return msgspec.json.encode(self._last(text, slot, cached))

    def _word(self, index: int) -> str:
        if self._cut is not None:
            return self._cut[index]
        return f" w{index}" if index else f" {self._first}"

    def _chat_frame(self, index: int) -> bytes:
        if not self._call:
            word = self._word(index)
            return frame(index + 1, {"content": word}, self._weights(word))
        delta = self._call[index]
        return b"" if delta is None else frame(index + 1, {"tool_calls": [delta]}, self._weights("{"))

    def _weights(self, word: str) -> bytes:
        return weights(word, self._request.n_probs) if self._request.n_probs else b""

    def _last(self, content: str, slot: int, cached: int) -> dict[str, object]:
        return {
            "index": 0,
            "content": content,
            "tokens": [],
            "id_slot": slot,
            "stop": True,
            "model": "mock",
            "tokens_predicted": self.total + (MISCOUNTED if self._kind is FaultKind.MISCOUNT else 0),
            "tokens_evaluated": self.prompt_tokens,
            "truncated": False,
            "stop_type": self._reason,
            "stopping_word": self._stop or "",
            "tokens_cached": self.prompt_tokens + self.total - 1,
            "timings": {
                "cache_n": cached,
                "prompt_n": self.prompt_tokens - cached,
                "predicted_n": self.total,
            },
        }


def _directive(prompt: str) -> int | None:
    """`[tokens=N]` in a prompt: the model ends by itself when N tokens stand behind it."""
    _, found, rest = prompt.partition("[tokens=")
    number, _, said = rest.partition("]")
    return max(1, int(number) - len(said.split())) if found and number.isdigit() else None
