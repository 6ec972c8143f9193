"""Continue a stream that readers have already seen the beginning of, honestly (ARCHITECTURE, invariant 4).

A later attempt generates from the start with the same seed. What was sent before is compared byte for byte and not
sent again; a difference means that the readers' text and this one do not belong together.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from llorch_shared.wire.frames import BadFrame, Kind, announced_attempt, peek, restarted_at, split_events


class _Token(msgspec.Struct, gc=False):
    """A token's event; what it carries besides its text is passed on as it is."""

    t: str
    i: int
    tool_calls: msgspec.Raw | None = None
    logprobs: msgspec.Raw | None = None


_TOKEN: Final = msgspec.json.Decoder(_Token)


class PrefixMismatch(ValueError):
    """This attempt generates other tokens than the readers already have."""


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """What the token stream of a task holds from earlier attempts."""

    started: bool
    tokens: Mapping[int, str]
    more: Mapping[int, bytes] = {}
    """Further members of the events of tokens that have them."""
    restarted_at: int | None = None
    """Tokens before this index are void."""

    @property
    def is_whole(self) -> bool:
        """There is no hole in it, and nothing is known to have gone before it."""
        return self.count == len(self.tokens) and (self.started or not self.tokens)

    @property
    def text(self) -> str:
        return "".join(self.tokens[index] for index in sorted(self.tokens))

    @property
    def count(self) -> int:
        return max(self.tokens, default=-1) + 1

    def next_index(self, taken: int) -> int:
        """First token that readers do not have once an attempt has produced `taken` tokens."""
        while taken in self.tokens:
            taken += 1
        return taken


def sent_before(messages: Iterable[bytes]) -> Sent:
    """Read the backlog of a task's token subject. The first text of an index is what readers kept; they take nothing
    from an attempt older than one that was announced."""
    started = False
    attempt = 0
    void_before: int | None = None
    tokens: dict[int, str] = {}
    more: dict[int, bytes] = {}
    for data in messages:
        try:
            header = peek(data)
            if header.kind is Kind.STARTED:
                started = True
            elif header.kind is Kind.METRICS:
                announced = announced_attempt(data)
                if announced >= attempt:
                    told = restarted_at(data)
                    void_before = void_before if told is None else told
                attempt = max(attempt, announced)
            elif header.kind is Kind.TOKENS and header.attempt >= attempt:
                attempt = header.attempt
                for event in split_events(data):
                    token = _TOKEN.decode(event.data)
                    if token.i not in tokens:
                        tokens[token.i] = token.t
                        if token.tool_calls is not None:
                            more[token.i] = b',"tool_calls":%b' % bytes(token.tool_calls)
                        elif token.logprobs is not None:
                            more[token.i] = b',"logprobs":%b' % bytes(token.logprobs)
        except (BadFrame, msgspec.DecodeError):
            continue
    return Sent(started=started, tokens=tokens, more=more, restarted_at=void_before)


class PrefixGuard:
    """Takes every token of this attempt; gives back the ones that must be published."""

    def __init__(self, tokens: Mapping[int, str]) -> None:
        self._left: Final = dict(tokens)

    @property
    def passed(self) -> bool:
        """Everything that was sent before has been compared."""
        return not self._left

    def take(self, first: int, texts: Sequence[str]) -> list[tuple[int, str]]:
        """`texts` are tokens `first`, `first + 1`, …. Raises PrefixMismatch."""
        fresh = []
        for index, text in enumerate(texts, first):
            known = self._left.pop(index, None)
            if known is None:
                fresh.append((index, text))
            elif known != text:
                raise PrefixMismatch(f"token {index} differs from the one already sent")
        return fresh

    def end(self, count: int) -> None:
        """The attempt ended after `count` tokens. Raises PrefixMismatch when readers have more."""
        if any(index >= count for index in self._left):
            raise PrefixMismatch(f"this attempt ends after {count} tokens, more were already sent")
