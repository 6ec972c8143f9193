"""How the mock engine reads prompts: as llama-server does, one batch of all its slots at a time.

While a batch is worked on the engine hears nothing: that a caller has left is noticed when a batch is done in which its
prompt had a part, and only then is the slot free. So the size of a batch is what a cancel of a long prompt costs
(ENGINES 1.6), and prompts that wait for others to be read cost as many more.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol


class Prompt(Protocol):
    """A generation whose prompt is not read yet."""

    prompt_tokens: int
    prompt_read: int
    over: bool

    def read_on(self) -> None:
        """A part of the prompt was read, perhaps the last."""


class Prefill:
    """`rate` is prompt tokens per second of the whole engine, `batch` the most tokens that are read at once."""

    def __init__(self, *, rate: float, batch: int) -> None:
        self.rate: Final = rate
        self._batch: Final = max(1, batch)
        self._prompts: Final[deque[Prompt]] = deque()
        self._heard: Final[list[Callable[[], None]]] = []
        self._left: Final[dict[Prompt, Callable[[], None]]] = {}
        self._working = False
        self._loop: Final = asyncio.get_running_loop()

    def add(self, prompt: Prompt) -> None:
        self._prompts.append(prompt)
        if not self._working:
            self._begin()

    def left(self, generation: Prompt, act: Callable[[], None]) -> None:
        """Its caller has: `act` when the engine notices."""
        if generation in self._prompts:
            self._left[generation] = act
        elif self._working:
            self._heard.append(act)
        else:
            act()

    def _begin(self) -> None:
        room, shares = self._batch, []
        for prompt in self._prompts:
            share = min(room, prompt.prompt_tokens - prompt.prompt_read)
            shares.append((prompt, share))
            room -= share
            if room <= 0:
                break
        self._working = True
        self._loop.call_later((self._batch - room) / self.rate, self._done, shares)

    def _done(self, shares: list[tuple[Prompt, int]]) -> None:
        self._working = False
        heard, self._heard[:] = list(self._heard), []
        for act in heard:
            act()
        for prompt, share in shares:
            prompt.prompt_read += share
            if prompt in self._left:
                self._left.pop(prompt)()
            if not prompt.over:
                prompt.read_on()
        for prompt in [each for each in self._prompts if each.over or each.prompt_read >= each.prompt_tokens]:
            self._prompts.remove(prompt)
            if prompt in self._left:
                del self._left[prompt]
        if self._prompts and not self._working:
            self._begin()
