"""Digests: how they are written, and when bytes are refused (ORCH-3037, 3703).

Only sha256 is spoken. A given digest that differs is fatal in every mode; a missing one is a warning, and what was
computed is recorded.
"""

import re
from collections.abc import Collection
from typing import Final

from llorch_provisioner.core.failure import Failure, Untrusted

_HEX: Final = re.compile(r"^(?:sha256:)?([0-9a-fA-F]{64})$(?!\n)")


def parse_digest(text: str) -> str:
    """`sha256:<hex>` or bare hex -> lower-case hex; empty stays empty. Raises Failure."""
    if not text:
        return ""
    match = _HEX.match(text.strip())
    if match is None:
        raise Failure(f"the checksum {text[:80]!r} is not a sha256", "write it as sha256:<64 hex digits>")
    return match[1].lower()


def parse_digests(texts: Collection[str]) -> tuple[str, ...]:
    """Every accepted digest in lower-case hex. Raises Failure."""
    return tuple(parse_digest(text) for text in texts if text)


def agreed(given: str, permitted: Collection[str] | None) -> tuple[str, ...]:
    """Digests that a file may have when both the wish and the catalog may name some; empty: any. Raises Untrusted when
    they exclude each other."""
    if permitted is None:
        return (given,) if given else ()
    if given and given not in permitted:
        known = " or ".join(f"sha256:{digest}" for digest in sorted(permitted))
        raise Untrusted(
            f"the pool asks for sha256:{given}, the catalog has {known}",
            "correct provisioning.model.checksum, or the entry of the catalog",
        )
    return (given,) if given else tuple(sorted(permitted))


def verified(what: str, computed: str, accepted: Collection[str]) -> bool:
    """True when `computed` is one of `accepted`, false when none is given. Raises Untrusted when it is not one."""
    if not accepted:
        return False
    if computed not in accepted:
        wanted = " or ".join(f"sha256:{digest}" for digest in sorted(accepted))
        raise Untrusted(
            f"{what} has sha256:{computed}, expected {wanted}",
            "check where it came from; correct the digest only if this file is the one you mean",
        )
    return True


def written(digest: str) -> str:
    """How a digest is shown and stored."""
    return f"sha256:{digest}" if digest else ""
