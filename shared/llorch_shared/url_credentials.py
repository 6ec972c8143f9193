"""Credentials do not belong into URLs: those are stored, listed, compared and logged. Where one is written down, it is
refused instead."""

import re
from typing import Final

_WITH_CREDENTIALS: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#\\\s]*@")
REFUSAL: Final = "a URL here has no user, password or token in it: whoever fetches has these of his own"


def has_credentials(text: str) -> bool:
    """Whether a URL in it names who asks (`https://user:password@host/`, `https://token@host/`)."""
    return "@" in text and _WITH_CREDENTIALS.search(text) is not None


def check(name: str, text: str) -> None:
    """Raises ValueError that does not repeat it."""
    if has_credentials(text):
        raise ValueError(f"{name}: {REFUSAL}")
