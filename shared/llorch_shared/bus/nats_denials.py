"""What the server forbids this user: told as it happens, and forgotten when it is over.

The server says when it refuses a publish, and never that it would take one again: a refusal counts for a while after it
was last heard. What it took away of the subscriptions it does not give back: see `nats_listening`. Times are seconds of
one clock, an argument.
"""

import re
from math import inf
from typing import Final

DENIED_S: Final = 10.0
"""How long a refused publish counts. Then this connection is trusted until the next refusal."""
SUBJECTS_MAX: Final = 256
"""Subjects remembered, so that each is logged once; more are counted only."""

_VIOLATION: Final = re.compile(r'permissions violation for (publish|subscription) to "([^"]+)"')


class Denials:
    """Of one connection. Subjects are in lower case, as the server's words come."""

    def __init__(self) -> None:
        self._words: Final[dict[str, str]] = {}
        self._problem = ""
        self._until = -inf

    def heard(self, words: str, now: float) -> tuple[str, bool, bool]:
        """The subject, whether it is a subscription's, and whether this is news."""
        found = _VIOLATION.search(words)
        subject = found[2] if found else words
        listens = found is not None and found[1] == "subscription"
        if now >= self._until:
            self._words.clear()
        self._problem, self._until = words, now + DENIED_S
        news = subject not in self._words and len(self._words) < SUBJECTS_MAX
        if news:
            self._words[subject] = words
        return subject, listens, news

    def of(self, subject: str) -> str:
        """The server's words about a subject, empty when it said none."""
        return self._words.get(subject.lower(), "")

    def forget(self, subject: str) -> None:
        self._words.pop(subject.lower(), None)

    def problem(self, now: float) -> str:
        """Why this connection is not to be trusted now; empty when it is."""
        return self._problem if now < self._until else ""

    def clear(self) -> None:
        """What comes is judged anew."""
        self._words.clear()
        self._problem, self._until = "", -inf
