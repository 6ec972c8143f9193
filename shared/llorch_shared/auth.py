"""Who may call: the decision of the auth seam (AUTH-1001..1008), pure. Reading headers and answering is the edge's.

One static bearer token. Without it only loopback is served, and a bind beyond loopback is refused at start. With it
everybody needs it, except loopback peers where `auth_optional` frees them.
"""

import hashlib
import hmac
import ipaddress
from dataclasses import dataclass
from typing import Final

from llorch_shared.errors import ErrorCode, OrchError
from llorch_shared.settings import Secret

LOCALHOST: Final = "localhost"
_SCHEME: Final = "bearer "


class NonLoopbackWithoutToken(Exception):
    """The configured bind is reachable from outside and no AUTH_TOKEN is set (AUTH-1002, 40301)."""


@dataclass(frozen=True, slots=True)
class Caller:
    """What the edge knows about one request. `proxied` is true when a forwarding header came with it."""

    peer: str
    authorization: str | None
    proxied: bool = False


@dataclass(frozen=True, slots=True)
class AuthPolicy:
    token: Secret
    auth_optional: bool = False
    trust_proxy_auth: bool = False
    """A proxy on this host is trusted to have kept strangers out: what it forwards counts as loopback (AUTH-1006).
    Whoever can reach the proxy can then do what loopback can."""

    def identify(self, caller: Caller) -> str:
        """`token:<fp6>` or `localhost` (AUTH-1008). Raises OrchError MISSING_TOKEN, BAD_TOKEN or
        NON_LOOPBACK_WITHOUT_TOKEN."""
        local = is_loopback(caller.peer) and (self.trust_proxy_auth or not caller.proxied)
        if not self.token:
            if local:
                return LOCALHOST
            raise OrchError(
                ErrorCode.NON_LOOPBACK_WITHOUT_TOKEN,
                "without AUTH_TOKEN only callers on this host are served",
                hint="set AUTH_TOKEN on the gateway and send it as a bearer token",
            )
        presented = bearer(caller.authorization)
        if presented is None:
            if local and self.auth_optional:
                return LOCALHOST
            raise OrchError(
                ErrorCode.MISSING_TOKEN, "a bearer token is required", hint="send Authorization: Bearer <AUTH_TOKEN>"
            )
        if not hmac.compare_digest(presented.encode(), self.token.reveal().encode()):
            raise OrchError(ErrorCode.BAD_TOKEN, "the bearer token is not the configured one")
        return f"token:{fingerprint(presented)}"


def bearer(authorization: str | None) -> str | None:
    """The token of an Authorization header; None when there is none of this scheme."""
    if authorization is None or authorization[: len(_SCHEME)].lower() != _SCHEME:
        return None
    return authorization[len(_SCHEME) :].strip() or None


def fingerprint(token: str) -> str:
    """First six hex digits of SHA-256: tells tokens apart in logs, tells nothing about them."""
    return hashlib.sha256(token.encode()).hexdigest()[:6]


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


def check_bind(host: str, token: Secret) -> None:
    """Raises NonLoopbackWithoutToken when listening on `host` would open the gateway to strangers (AUTH-1002)."""
    if not token and not is_loopback(host):
        raise NonLoopbackWithoutToken(
            f"refusing to listen on {host}: it is reachable from outside and AUTH_TOKEN is not set (40301). "
            "Set AUTH_TOKEN, or bind to 127.0.0.1"
        )
