"""What the slots of the mock engine keep of their last prompts, as llama-server's do: a prompt that begins with the
same tokens as the one before it in its slot finds them cached, all but the last one. It says so and is no faster by it.
"""

from typing import Final


class SlotCache:
    def __init__(self, slots: int) -> None:
        self._words: Final[list[tuple[str, ...]]] = [()] * slots
        self._tokens: Final[list[int]] = [0] * slots

    def take(self, slot: int, prompt: str, *, reuse: bool) -> int:
        """A prompt comes into the slot; returns how many of its tokens are cached."""
        words = tuple(prompt.split())
        cached = 0
        if reuse:
            for own, kept in zip(words[:-1], self._words[slot], strict=False):
                if own != kept:
                    break
                cached += 1
        self._words[slot] = words
        return cached

    def left(self, slot: int, prompt_read: int, sent: int) -> None:
        """What was not read of the prompt is not kept; what was generated is, but for its last token."""
        self._words[slot] = self._words[slot][:prompt_read]
        self._tokens[slot] = prompt_read + max(0, sent - 1)

    def tokens(self, slot: int) -> int:
        """How many an idle slot keeps."""
        return self._tokens[slot]

    def erase(self, slot: int) -> int:
        """Returns how many tokens that were."""
        erased, self._tokens[slot], self._words[slot] = self._tokens[slot], 0, ()
        return erased
