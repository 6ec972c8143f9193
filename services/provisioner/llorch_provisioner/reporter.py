"""What fulfilling an order may tell and must obey: the step it is at, bytes, verification results, limits."""

from typing import Protocol

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    download_timeout_s: float
    artifact_bytes_max: int


class Reporter(Protocol):
    def begin(self, kind: str) -> None:
        """The next step of that kind in the plan begins."""

    def advance(self, done: int, total: int) -> None:
        """Bytes of the present step; may be called from any thread. Raises Failure when the job is to stop."""

    def verified(self, matched: bool, what: str) -> None:
        """A digest was computed; `matched` is false when there was none to compare it with."""

    def now_ms(self) -> int: ...
