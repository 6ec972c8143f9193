"""The text of the mock engine: words that follow from prompt and seed, word 0 their digest, word k `w<k>`; and what it
makes of conversations and stop words, as llama-server would.
"""

import hashlib
from collections.abc import Iterable
from typing import Any

import msgspec


class Function(msgspec.Struct):
    name: str
    arguments: str = ""


class Call(msgspec.Struct):
    function: Function


class Turn(msgspec.Struct):
    role: str
    content: str
    tool_calls: list[Call] = []


class Chat(msgspec.Struct):
    """POST /apply-template."""

    messages: list[Turn]
    tools: list[dict[str, Any]] = []


def stop_in(text: str, stops: Iterable[str]) -> str | None:
    """The stop word that comes first."""
    found = [(text.find(stop), stop) for stop in stops if stop in text]
    return min(found)[1] if found else None


def cut_at(text: str, stops: Iterable[str]) -> list[str] | None:
    """The texts of the tokens up to and with the one that completes the first stop word, none of which is shown: what
    may be its beginning is held back, as llama-server does. None when the text has none."""
    stop = stop_in(text, stops)
    if stop is None:
        return None
    start = text.find(stop)
    end, texts, length = start + len(stop), [], 0
    for word in text[1:].split(" "):
        if length >= end:
            break
        token = f" {word}"
        texts.append(token[: max(0, start - length)])
        length += len(token)
    return texts


def chatml(messages: Iterable[Turn], tools: Iterable[dict[str, Any]] = ()) -> str:
    """The prompt of a conversation, by the template that most small models have, with tools as JSON before it."""
    offers = "".join(f"{msgspec.json.encode(tool).decode()}\n" for tool in tools)
    turns = [f"<|im_start|>{turn.role}\n{turn.content}{_calls(turn)}<|im_end|>\n" for turn in messages]
    return "".join([f"<|im_start|>system\n{offers}<|im_end|>\n" if offers else "", *turns, "<|im_start|>assistant\n"])


def _calls(turn: Turn) -> str:
    return "".join(f"<tool_call>{call.function.name} {call.function.arguments}</tool_call>" for call in turn.tool_calls)


def digest(prompt: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}\n{prompt}".encode()).hexdigest()[:8]


def text_of(prompt: str, seed: int, tokens: int) -> str:
    """The whole text of one generation, for whoever wants to compare."""
    return "".join([f" {digest(prompt, seed)}", *(f" w{index}" for index in range(1, tokens))][:tokens])


def tokens_of(prompt: str) -> int:
    return max(1, len(prompt.split()))
