"""When a node looks again whether a model that it may not load has been permitted: less often each time. Pure."""

from typing import Final

FIRST_S: Final = 2.0
MAX_S: Final = 60.0
COSTLY_MAX_S: Final = 3600.0
"""Where the file itself is refused: looking again means to fetch or read the whole of it again."""


class TrustLook:
    def __init__(self) -> None:
        self._next_s = FIRST_S
        self._max_s = MAX_S

    def refused(self, *, costly: bool) -> None:
        """`costly`: that is known of its bytes alone."""
        self._max_s = COSTLY_MAX_S if costly else MAX_S

    def permitted(self) -> None:
        """It has been fetched, and is what was promised."""
        self._next_s = FIRST_S

    def pause_s(self) -> float:
        """Seconds until the next look."""
        pause_s = min(self._next_s, self._max_s)
        self._next_s = 2 * pause_s
        return pause_s
