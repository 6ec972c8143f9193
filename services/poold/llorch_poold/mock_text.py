"""What the mock engine makes of conversations and stop words, as llama-server would."""

from collections.abc import Iterable

import msgspec


class Turn(msgspec.Struct):
    role: str
    content: str


class Chat(msgspec.Struct):
    """POST /apply-template."""

    messages: list[Turn]


def cut_at(text: str, stops: Iterable[str]) -> list[str] | None:
    """The texts of the tokens up to and with the one that completes the first stop word, none of which is shown: what
    may be its beginning is held back, as llama-server does. None when the text has none."""
    found = [(text.find(stop), stop) for stop in stops if stop in text]
    if not found:
        return None
    start, stop = min(found)
    end, texts, length = start + len(stop), [], 0
    for word in text[1:].split(" "):
        if length >= end:
            break
        token = f" {word}"
        texts.append(token[: max(0, start - length)])
        length += len(token)
    return texts


def chatml(messages: Iterable[Turn]) -> str:
    """The prompt of a conversation, by the template that most small models have."""
    turns = [f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>\n" for turn in messages]
    return "".join([*turns, "<|im_start|>assistant\n"])
