"""Who may call: the decision of the auth seam (AUTH-1001..1008), pure. Reading headers and answering is the edge's.

Without any token only loopback is served, and a bind beyond loopback is refused at start. With one everybody needs it,
except loopback peers where `auth_optional` frees them. Which tokens are good is decided in two steps: here what was
presented, then `KnownTokens` (the static secret and the token file), by digests alone.
"""

import hashlib
import hmac
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Protocol

from llorch_shared.errors import ErrorCode, OrchError
from llorch_shared.settings import Secret
from llorch_shared.token_file import TokenEntry
from llorch_shared.wire.task import Priority

LOCALHOST: Final = "localhost"
STATIC: Final = "AUTH_TOKEN"
"""Name of the one static secret among the known tokens; no entry of a token file can have it."""
EVERY_PRIORITY: Final = frozenset(Priority)
_SCHEME: Final = "bearer "


class NonLoopbackWithoutToken(Exception):
    """The configured bind is reachable from outside and no token is set (AUTH-1002, 40301)."""


@dataclass(frozen=True, slots=True)
class Caller:
    """What the edge knows about one request. `proxied` is true when a forwarding header came with it."""

    peer: str
    authorization: str | None
    proxied: bool = False
    api_key: str | None = None
    """X-API-Key, in which some client libraries send their token; Authorization wins over it."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who calls, and what a token permits. Limits of None are none."""

    name: str
    """Under which its limits are counted."""
    crumb: str
    """For logs and the audit: `token:<fp6>`, `localhost`, `oidc:<fp6>` (AUTH-1008)."""
    tenant: str = ""
    """Whose work it is, and all that it may see. Empty: the gateway's own tenant, and everybody's tasks are seen."""
    priorities: frozenset[Priority] = EVERY_PRIORITY
    requests_per_s: float | None = None
    burst: int = 1
    streams_max: int | None = None


LOCAL: Final = Identity(name=LOCALHOST, crumb=LOCALHOST)


class Verifier(Protocol):
    """One way to tell whose a token is."""

    @property
    def problem(self) -> str:
        """What should be mended, and does not keep it from verifying; else empty."""

    async def verify(self, token: str) -> Identity | None:
        """None when it is not one of its tokens. Raises OrchError BAD_TOKEN for one that is no longer good."""


@dataclass(frozen=True, slots=True)
class AuthPolicy:
    guarded: bool
    """Whether any token is configured: without one there is nothing to present."""
    auth_optional: bool = False
    trust_proxy_auth: bool = False
    """A proxy on this host is trusted to have kept strangers out: what it forwards counts as loopback (AUTH-1006).
    Whoever can reach the proxy can then do what loopback can."""

    def presented(self, caller: Caller) -> str | None:
        """The token to verify; None when the caller is let in as localhost. Raises OrchError MISSING_TOKEN or
        NON_LOOPBACK_WITHOUT_TOKEN."""
        local = is_loopback(caller.peer) and (self.trust_proxy_auth or not caller.proxied)
        if not self.guarded:
            if local:
                return None
            raise OrchError(
                ErrorCode.NON_LOOPBACK_WITHOUT_TOKEN,
                "without AUTH_TOKEN only callers on this host are served",
                hint="set AUTH_TOKEN or gateway.tokens_file on the gateway, and send a bearer token",
            )
        presented = bearer(caller.authorization) or (caller.api_key or "").strip() or None
        if presented is None and not (local and self.auth_optional):
            raise OrchError(
                ErrorCode.MISSING_TOKEN, "a bearer token is required", hint="send Authorization: Bearer <token>"
            )
        return presented


class KnownTokens:
    """The static secret and the entries of a token file. Every one of them is compared, whichever fits, so that the
    time tells nothing (AUTH-1007)."""

    def __init__(self, static: Secret, entries: Sequence[TokenEntry] = ()) -> None:
        self._digests: Final = [bytes.fromhex(entry.sha256) for entry in entries]
        self._entries: Final = list(entries)
        if static:
            self._digests.append(digest(static.reveal()))

    def identify(self, token: str, now_s: float) -> Identity | None:
        """None when it is none of them; `now_s` is Unix time. Raises OrchError BAD_TOKEN for one that has expired."""
        presented, found = digest(token), -1
        for number, known in enumerate(self._digests):
            same = hmac.compare_digest(presented, known)
            found = number if same else found
        if found < 0:
            return None
        crumb = f"token:{fingerprint(token)}"
        if found >= len(self._entries):
            return Identity(name=STATIC, crumb=crumb)
        entry = self._entries[found]
        if entry.expires is not None and entry.expires.timestamp() <= now_s:
            raise OrchError(ErrorCode.BAD_TOKEN, "the bearer token has expired", hint="ask for a new one")
        return Identity(
            name=entry.name,
            crumb=crumb,
            tenant=entry.tenant,
            priorities=frozenset(entry.priorities),
            requests_per_s=entry.requests_per_s,
            burst=entry.burst_of(),
            streams_max=entry.streams_max,
        )


def bad_token() -> OrchError:
    return OrchError(ErrorCode.BAD_TOKEN, "the bearer token is not one that this gateway knows")


def bearer(authorization: str | None) -> str | None:
    """The token of an Authorization header; None when there is none of this scheme."""
    if authorization is None or authorization[: len(_SCHEME)].lower() != _SCHEME:
        return None
    return authorization[len(_SCHEME) :].strip() or None


def digest(token: str) -> bytes:
    """SHA-256: what is kept and compared in place of a token."""
    return hashlib.sha256(token.encode()).digest()


def fingerprint(token: str) -> str:
    """First six hex digits of SHA-256: tells tokens apart in logs, tells nothing about them."""
    return digest(token).hex()[:6]


@lru_cache(maxsize=1024)
def is_loopback(host: str) -> bool:
    """127/8, ::1 (also when mapped), and the name localhost."""
    if host == LOCALHOST:
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def check_bind(host: str, *, guarded: bool) -> None:
    """Raises NonLoopbackWithoutToken when listening on `host` would open the gateway to strangers (AUTH-1002)."""
    if not guarded and not is_loopback(host):
        raise NonLoopbackWithoutToken(
            f"refusing to listen on {host}: it is reachable from outside and AUTH_TOKEN is not set (40301). "
            "Set AUTH_TOKEN or gateway.tokens_file, or bind to 127.0.0.1"
        )
