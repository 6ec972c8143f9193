"""What one streamed task took, from when its client sent it: collected event by event, told in milliseconds."""

from typing import Any

import msgspec


class Measured(msgspec.Struct, kw_only=True):
    """Times are seconds of one monotonic clock; -1 until they happened."""

    sent_at: float
    first_at: float = -1
    last_at: float = -1
    tokens: int = 0
    started: dict[str, Any] = {}
    end: dict[str, Any] = {}
    error: dict[str, Any] = {}

    def saw(self, event: str, data: dict[str, Any], now: float) -> None:
        if event == "token":
            self.tokens += 1
            self.last_at = now
            if self.first_at < 0:
                self.first_at = now
        elif event == "started":
            self.started = data
        elif event == "end":
            self.end = data
        elif event == "error":
            self.error = data

    @property
    def first_token_ms(self) -> float:
        """From sending the task to its first token in the client's hands; 0 when there was none."""
        return round((self.first_at - self.sent_at) * 1000, 1) if self.first_at >= 0 else 0.0

    @property
    def tokens_per_s(self) -> float:
        """After the first token, as the client saw them come."""
        took = self.last_at - self.first_at
        return round((self.tokens - 1) / took, 1) if self.tokens > 1 and took > 0 else 0.0
