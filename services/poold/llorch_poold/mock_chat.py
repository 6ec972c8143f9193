"""Chats with tools at the mock engine, in the frames that llama-server was recorded to send.

It calls the first tool where a call is required or its prompt has `[call]`, with the digest of prompt and seed as the
value of the first parameter; any other chat gets the words of a completion. As from a real engine, what stands for
markup comes as no frame, and the count of the next frame tells of it.
"""

from typing import Any, Final

import msgspec

from llorch_poold.mock_text import Turn, chatml

CALL: Final = "[call]"
_SILENT: Final = 2
"""Tokens of markup before a call, and one for the end behind it."""
_HEAD: Final = b'data: {"choices":[{"finish_reason":null,"index":0,"delta":'
_TAIL: Final = b'}],"created":0,"id":"chatcmpl-mock","model":"mock","object":"chat.completion.chunk"'
_encode: Final = msgspec.json.encode


class ChatWish(msgspec.Struct, kw_only=True):
    """The fields of POST /v1/chat/completions that the mock obeys."""

    messages: list[Turn]
    tools: list[dict[str, Any]] = []
    tool_choice: str = "auto"
    max_tokens: int = 16
    seed: int = 0
    stream: bool = False
    return_progress: bool = False
    cache_prompt: bool = True
    n_probs: int = 0
    id_slot: int = -1

    @property
    def prompt(self) -> str:
        return chatml(self.messages, self.tools)

    @property
    def calls(self) -> bool:
        return bool(self.tools) and (self.tool_choice == "required" or CALL in self.messages[-1].content)


def call_deltas(tool: dict[str, Any], word: str) -> list[dict[str, Any] | None]:
    """What each token of a call adds to it; None: nothing."""
    function = tool["function"]
    key = next(iter(function.get("parameters", {}).get("properties", {})), "")
    called = {"name": function["name"], "arguments": "{"}
    head = {"index": 0, "id": f"call_{word}", "type": "function", "function": called}
    pieces = [f'"{key}":', ' "', word, '"', "}"] if key else ["}"]
    deltas: list[dict[str, Any] | None] = [{"index": 0, "function": {"arguments": piece}} for piece in pieces]
    return [*[None] * _SILENT, head, *deltas, None]


def arguments_of(tool: dict[str, Any], word: str) -> str:
    """The arguments of a whole call."""
    return "".join(delta["function"]["arguments"] for delta in call_deltas(tool, word) if delta)


def frame(number: int, delta: dict[str, Any], weights: bytes = b"") -> bytes:
    """Of token `number`, counted from 1, with its log-probabilities as JSON where they are asked for."""
    told = b',"logprobs":{"content":%b}' % weights if weights else b""
    return b'%b%b%b%b,"timings":{"cache_n":0,"predicted_n":%d}}\n\n' % (_HEAD, _encode(delta), told, _TAIL, number)


def progress(total: int, processed: int) -> bytes:
    said = {"total": total, "cache": 0, "processed": processed, "time_ms": 1}
    return b'%b{"role":"assistant","content":null}%b,"prompt_progress":%b}\n\n' % (_HEAD, _TAIL, _encode(said))


def last_frames(reason: str, *, tokens_in: int, tokens_out: int) -> bytes:
    finish = {"choices": [{"finish_reason": reason, "index": 0, "delta": {}}], "object": "chat.completion.chunk"}
    counts = {"completion_tokens": tokens_out, "prompt_tokens": tokens_in, "total_tokens": tokens_in + tokens_out}
    usage = {"choices": [], "object": "chat.completion.chunk", "usage": counts}
    return b"data: %b\n\ndata: %b\n\ndata: [DONE]\n\n" % (_encode(finish), _encode(usage))
