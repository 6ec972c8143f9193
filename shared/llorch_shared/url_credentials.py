"""Credentials do not belong into URLs: those are stored, listed, compared and logged. Where one is written down, it is
refused instead.

A password may hold a slash, although it should not, and then ends the host for whoever reads by the rules. So what
follows the host's colon and is no port is a password, as far as a later `@`. Of `https://name:80/rest@host/` nobody can
tell: it is taken for a port, since digests are written so (`oci://host:5000/model@sha256:…`).
"""

import re
from typing import Final

_PORT: Final = r"""\d{1,5}(?:[/?#\\"',;)\]}>]|$)"""
_WITH_CREDENTIALS: Final = re.compile(
    rf"""[A-Za-z][A-Za-z0-9+.-]*://(?:[^/?#\\\s]*@|(?!\[)[^/?#\\\s@:]*:(?!{_PORT})[^\s"'<>]*@)"""
)
REFUSAL: Final = "a URL here has no user, password or token in it: whoever fetches has these of his own"


def has_credentials(text: str) -> bool:
    """Whether a URL in it names who asks (`https://user:password@host/`, `https://token@host/`)."""
    return "@" in text and _WITH_CREDENTIALS.search(text) is not None


def check(name: str, text: str) -> None:
    """Raises ValueError that does not repeat it."""
    if has_credentials(text):
        raise ValueError(f"{name}: {REFUSAL}")
