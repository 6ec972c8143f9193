"""Identifiers that become a subject token: what is allowed in one, checked where it enters the system.

`$(?!\\n)`: Python's `$` also matches before a final line break, and a line break in a subject ends the protocol line.
"""

import re
from typing import Final

UUID_PATTERN: Final = r"^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$(?!\n)"
"""Any RFC 9562 UUID. Compared and stored in lower case."""

NAME_PATTERN: Final = r"^[a-z0-9][a-z0-9_-]{0,62}$(?!\n)"
"""Pools, replicas, nodes, tenants, lanes: one subject token, also safe in stream and file names."""

CORRELATION_PATTERN: Final = r"^[A-Za-z0-9._:@/+=-]{1,128}$(?!\n)"
"""X-Correlation-Id: printable, no spaces, bounded, so it can travel in headers and log lines unescaped."""

_UUID: Final = re.compile(UUID_PATTERN)
_NAME: Final = re.compile(NAME_PATTERN)
_CORRELATION: Final = re.compile(CORRELATION_PATTERN)


def is_uuid(text: str) -> bool:
    return _UUID.match(text) is not None


def is_name(text: str) -> bool:
    return _NAME.match(text) is not None


def is_correlation_id(text: str) -> bool:
    return _CORRELATION.match(text) is not None


def token(text: str) -> str:
    """Return `text` unchanged if it can stand as one subject token; raise ValueError otherwise."""
    if not (is_name(text) or is_uuid(text)):
        raise ValueError(f"{text!r} is not a name: use a-z, 0-9, '-' and '_', at most 63 characters")
    return text
