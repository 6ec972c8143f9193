"""How fast a replica is, as measured on its tasks: the performance hints of its record (ORCH-3972, 3990).

The decode rate is a ratio of decayed sums, so a long generation counts for more than a short one and a task of two
tokens cannot spoil it. The first token's time counts from the engine call: waiting in a queue is not the replica's.
"""

from typing import Final

DECAY: Final = 0.9
"""What a past task weighs when another one ends: about ten tasks are remembered."""


class Pace:
    """Of one replica, over all lives of its engine."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0
        self._first_ms = 0.0

    @property
    def tokens_per_s(self) -> float:
        """Decode rate of one task; 0 until one was measured."""
        return round(self._tokens / self._seconds, 2) if self._seconds else 0.0

    @property
    def first_token_ms(self) -> float:
        """From the engine call to the first token; 0 until one was measured."""
        return round(self._first_ms, 2)

    def first_token(self, seconds: float) -> None:
        elapsed_ms = seconds * 1000
        self._first_ms = elapsed_ms if not self._first_ms else DECAY * self._first_ms + (1 - DECAY) * elapsed_ms

    def decoded(self, tokens: int, seconds: float) -> None:
        """`tokens` came in the `seconds` after the first one; nothing is learned from a task without any."""
        if tokens < 1 or seconds <= 0:
            return
        self._tokens = DECAY * self._tokens + tokens
        self._seconds = DECAY * self._seconds + seconds
