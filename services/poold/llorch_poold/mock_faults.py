"""What the mock engine can do wrong on demand, and the bytes of it.

Most kinds are what a broken engine, a proxy in front of it or a bad build sends: each must become a named failure of
the attempt (`adapters/llama_stream.py`).
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Final

import msgspec

FLOOD_BYTES: Final = 256 * 1024
MISCOUNTED: Final = 9
"""Tokens that a miscounting last frame adds."""


class FaultKind(StrEnum):
    NONE = "none"
    HANG = "hang"
    """Take the request and say nothing more, from token `after` on; with `after` 0 not even that it was taken."""
    RESET = "reset"
    """Cut the connection at token `after`."""
    GARBAGE = "garbage"
    """Send something that is no JSON at token `after`."""
    UTF8 = "utf8"
    """Send bytes that are no UTF-8 at token `after`."""
    EVENT = "event"
    """Break the framing of events at token `after`."""
    FLOOD = "flood"
    """Begin a line at token `after` that never ends."""
    EOF = "eof"
    """End the answer in order at token `after`, without its last frame."""
    FAIL = "fail"
    """Send an error frame at token `after`."""
    GAP = "gap"
    """Lose token `after`."""
    MISCOUNT = "miscount"
    """Count more tokens in the last frame than were sent."""
    DRIFT = "drift"
    """Say other words in every block that begins at token `after` or later."""
    PREFILL = "prefill"
    """Take `ms` before the first token."""
    NAN = "nan"
    """Answer with something that is no number, where a result is one."""
    ERROR = "error"
    """Answer HTTP 500."""
    BUSY = "busy"
    """Answer HTTP 503."""
    ERROR_BODY = "error_body"
    """Answer HTTP 200 with an error as JSON."""
    PAGE = "page"
    """Answer HTTP 200 with an HTML page."""
    REFUSE_CANCEL = "refuse_cancel"
    """Keep the slot busy although the caller has left."""
    NO_ERASE = "no_erase"
    """Erase no slot, as an engine that was started without a place for saved ones."""


BROKEN: Final = {
    FaultKind.GARBAGE: b'data: {"content": <not json>}\n\n',
    FaultKind.UTF8: b'data: {"index":0,"content":" \xff\xfe","tokens":[1],"stop":false,"tokens_predicted":1}\n\n',
    FaultKind.EVENT: b'ata: {"index":0,"content":" lost","tokens":[1],"stop":false,"tokens_predicted":1}\n\n',
    FaultKind.FLOOD: b"data: ",
    FaultKind.FAIL: b'data: {"error":{"code":500,"message":"fault injected","type":"server_error"}}\n\n',
}
"""What is sent in place of a token."""

STOPS: Final = frozenset({*BROKEN, FaultKind.HANG, FaultKind.RESET, FaultKind.EOF})
"""Kinds that end a generation at token `after`."""


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What goes wrong with the next `times` generations (0: with all), of this `seed` only where one is named. Of
    results of inputs, `after` many come first that are good."""

    kind: FaultKind
    after: int = 0
    ms: int = 0
    times: int = 0
    seed: int | None = None


class Faults:
    """Those that are still to happen, in order."""

    def __init__(self) -> None:
        self._waiting: Final[list[Fault]] = []

    def set(self, faults: Iterable[Fault]) -> None:
        """These and no others. One without `times` is never over."""
        self._waiting[:] = [fault for fault in faults if fault.kind is not FaultKind.NONE]

    def take_result(self) -> Fault | None:
        """The fault of the next result."""
        if self._waiting and self._waiting[0].after:
            first = self._waiting[0]
            self._waiting[0] = msgspec.structs.replace(first, after=first.after - 1)
            return None
        return self.take(None)

    def take(self, seed: int | None) -> Fault | None:
        """The fault of the next generation."""
        fits = (place for place, fault in enumerate(self._waiting) if fault.seed in (None, seed))
        return self._use(next((place for place in fits if self._waiting[place].kind is not FaultKind.NO_ERASE), None))

    def take_erasure(self) -> Fault | None:
        """The fault of the next erasure of a slot."""
        kinds = [fault.kind for fault in self._waiting]
        return self._use(kinds.index(FaultKind.NO_ERASE) if FaultKind.NO_ERASE in kinds else None)

    def _use(self, place: int | None) -> Fault | None:
        if place is None:
            return None
        fault = self._waiting[place]
        if fault.times == 1:
            del self._waiting[place]
        elif fault.times:
            self._waiting[place] = msgspec.structs.replace(fault, times=fault.times - 1)
        return fault
