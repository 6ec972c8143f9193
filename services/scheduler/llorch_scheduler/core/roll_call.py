"""Who is still there: asked by name again and again, and gone when nobody answers several times in a row.

Only "nobody listens there" speaks against a process: the bus says so at once when its connection is gone. Silence does
not: a process that sleeps, or a slow bus, is for the expiry of its registry key to judge. Nor does anything count until
the asker's own connection has stood for a while, because after a restart of the bus the others need time to come back,
too; nor against a process that was never heard: it may be of a release that does not answer.
"""

from collections.abc import Collection, Set
from dataclasses import dataclass
from typing import Final

STRIKES: Final = 3
"""Answers "nobody listens there", one after another, that make a process gone."""
SETTLE_MS: Final = 2_000
"""How long the asker must have been connected. Others try to reconnect five times a second."""
ASKS_PER_S: Final = 100
"""Of one roll call, at most. Beyond what this allows each is asked less often, and expiry comes first."""
BURST: Final = 10
OPEN_MAX: Final = 8
"""Questions to one process that may be open. A question that it took along into its death must not delay the next."""


@dataclass(slots=True)
class _Called:
    due_ms: int
    heard: bool = False
    strikes: int = 0
    struck_ms: int = 0
    """When it was last said that nobody is there."""
    open: int = 0
    """Questions without an outcome yet."""


class RollCall:
    """Of one kind of process. `every_ms`: how often each is asked; `again_ms`: after an answer that nobody is there."""

    def __init__(self, *, every_ms: int, again_ms: int) -> None:
        self._every_ms: Final = every_ms
        self._again_ms: Final = again_ms
        self._called: Final[dict[str, _Called]] = {}
        self._gone: Final[set[str]] = set()
        self._connected_ms: int | None = None
        self._allowed = float(BURST)
        self._allowed_ms = 0

    @property
    def gone(self) -> Set[str]:
        """Those that are gone now, as long as they are expected. The same object always."""
        return self._gone

    @property
    def heard(self) -> Set[str]:
        """Those that have answered at least once. O(n)."""
        return {name for name, called in self._called.items() if called.heard}

    def connected(self, at_ms: int) -> None:
        """The asker's connection stands. Told again and again; the first time after a break counts."""
        if self._connected_ms is None:
            self._connected_ms = at_ms

    def disconnected(self) -> None:
        self._connected_ms = None
        for called in self._called.values():
            called.strikes = 0

    def expect(self, names: Collection[str], at_ms: int) -> None:
        """Who is to be asked from now on; the others are forgotten."""
        for name in self._called.keys() - set(names):
            del self._called[name]
            self._gone.discard(name)
        for name in names:
            if name not in self._called:
                self._called[name] = _Called(due_ms=at_ms)

    def due(self, at_ms: int) -> list[str]:
        """Whom to ask now; each ends as `present`, `absent` or `silent`. Those in doubt come first, then those who have
        waited longest. O(n log n)."""
        if not self._settled(at_ms):
            return []
        self._allowed = min(BURST, self._allowed + (at_ms - self._allowed_ms) * ASKS_PER_S / 1000)
        self._allowed_ms = at_ms
        waiting = [name for name, each in self._called.items() if each.open < OPEN_MAX and each.due_ms <= at_ms]
        waiting.sort(key=lambda name: (-self._called[name].strikes, self._called[name].due_ms))
        due = waiting[: int(self._allowed)]
        self._allowed -= len(due)
        for name in due:
            called = self._called[name]
            called.open, called.due_ms = called.open + 1, at_ms + self._every_ms
        return due

    def present(self, name: str) -> None:
        """It answered."""
        if (called := self._answer(name)) is not None:
            called.heard, called.strikes = True, 0
            self._gone.discard(name)

    def absent(self, name: str, at_ms: int) -> bool:
        """The bus says that nobody listens there. True when it is gone, each time this is said of it."""
        called = self._answer(name)
        if called is None or not called.heard or not self._settled(at_ms):
            return False
        called.strikes, called.struck_ms = min(called.strikes + 1, STRIKES), at_ms
        if called.strikes < STRIKES:
            called.due_ms = at_ms + self._again_ms
            return False
        self._gone.add(name)
        return True

    def silent(self, name: str, asked_ms: int) -> None:
        """No answer in time to a question of `asked_ms`: then somebody took it, who may sleep and may be anything but
        gone. Of what came to be since it says nothing: who takes a question may die of it. Who was found gone stays
        so."""
        called = self._answer(name)
        if called is not None and asked_ms > called.struck_ms and name not in self._gone:
            called.strikes = 0

    def _settled(self, at_ms: int) -> bool:
        return self._connected_ms is not None and at_ms - self._connected_ms >= SETTLE_MS

    def _answer(self, name: str) -> _Called | None:
        called = self._called.get(name)
        if called is not None:
            called.open = max(0, called.open - 1)
        return called
