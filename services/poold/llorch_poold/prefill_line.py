"""Whose long prompt the engine reads: one at a time, in the order in which they came.

llama-server reads prompts one after another anyway: each batch is filled from the lowest slot on. That a caller has
left it sees only when the caller's own prompt had a part in a batch, so prompts that wait inside it are let go one
batch after another; those that wait here have never been sent, and are gone at once. Prompts that fit in a batch do not
stand in line, several of them are read together.
"""

import asyncio
from collections import deque
from typing import Final

CHARACTERS_PER_TOKEN: Final = 4
"""Of usual English. Where a token is a character, a prompt of up to four batches counts as short."""


class Turn:
    """A place in the line, kept until `leave`."""

    def __init__(self, line: "PrefillLine") -> None:
        self._line: Final = line
        self._come: Final = asyncio.Event()

    @property
    def has_come(self) -> bool:
        return self._come.is_set()

    async def wait(self) -> None:
        await self._come.wait()

    def call(self) -> None:
        self._come.set()

    def leave(self) -> None:
        """The prompt is read, or the engine has let go of it, or never had it. Safe to call twice."""
        self._line.left(self)


class PrefillLine:
    """Of one engine. `batch`: prompt tokens that it reads at once."""

    def __init__(self, batch: int) -> None:
        self._short: Final = CHARACTERS_PER_TOKEN * batch
        self._turns: Final[deque[Turn]] = deque()
        """The first one's prompt is being read."""

    def join(self, prompt: str) -> Turn:
        turn = Turn(self)
        if len(prompt) <= self._short:
            turn.call()
        else:
            self._turns.append(turn)
            self._turns[0].call()
        return turn

    def left(self, turn: Turn) -> None:
        if turn in self._turns:
            self._turns.remove(turn)
            if self._turns:
                self._turns[0].call()
