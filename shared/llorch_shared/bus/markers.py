"""How the deletion of a bucket's key is stored: as one more message of the key, a marker without a value."""

from collections.abc import Mapping
from typing import Final

DELETED: Final[Mapping[str, str]] = {"KV-Operation": "DEL"}
"""Headers of a marker that a client stores."""


def is_marker(headers: Mapping[str, str]) -> bool:
    """Whether a key expired, or was deleted, with a message of these headers."""
    return "Nats-Marker-Reason" in headers or headers.get("KV-Operation") in ("DEL", "PURGE")
