"""The public keys of an OpenID issuer: fetched when first needed, again when they are old or a token names a new one.

Anybody can name a key that does not exist, so fetches have a least distance. Keys that were read stay in effect while
the issuer does not answer.
"""

import asyncio
import logging
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

import jwt
import msgspec

from llorch_gateway.failures import unavailable
from llorch_shared.auth import is_loopback
from llorch_shared.logs import narrate
from llorch_shared.settings import OidcSettings, SettingsError
from llorch_shared.url_credentials import REFUSAL, has_credentials

log = logging.getLogger(__name__)

DISCOVERY: Final = "/.well-known/openid-configuration"
DOCUMENT_BYTES_MAX: Final = 256 * 1024
FETCH_TIMEOUT_S: Final = 5.0
FETCHES_APART_S: Final = 10.0
"""Whoever sends tokens with made-up keys causes one fetch in so long, no more."""


class IssuerKeys:
    """`clock` is monotonic, seconds."""

    def __init__(self, wanted: OidcSettings, clock: Callable[[], float]) -> None:
        """Raises SettingsError."""
        check(wanted)
        self._wanted: Final = wanted
        self._clock: Final = clock
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._read_at: float | None = None
        self._tried_at: float | None = None
        self._fetching = asyncio.Lock()
        self.renewal: asyncio.Task[None] | None = None
        self.problem = ""
        self.generation = 0
        """Another whenever the keys were read: what was verified with the ones before is to be verified again."""

    def keep_fresh(self) -> None:
        """Begin to read the keys again when they are old; nobody waits for that."""
        if self._is_old() and self._may_try() and (self.renewal is None or self.renewal.done()):
            self.renewal = asyncio.create_task(self._fetch(None, renew=True), name="issuer keys")

    async def find(self, kid: object) -> jwt.PyJWK | None:
        """None when the issuer has no such key. A token that names none has the only one. Raises OrchError 503 while no
        keys were ever read."""
        key = self._known(kid)
        if key is None:
            await self._fetch(kid)
            key = self._known(kid)
        else:
            self.keep_fresh()
        if key is None and self._read_at is None:
            raise unavailable("the keys of the token issuer cannot be read now")
        return key

    def _known(self, kid: object) -> jwt.PyJWK | None:
        if kid is None:
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(kid) if isinstance(kid, str) else None

    def _is_old(self) -> bool:
        return self._read_at is None or self._clock() - self._read_at > self._wanted.keys_max_age_ms / 1000

    def _may_try(self) -> bool:
        return self._tried_at is None or self._clock() - self._tried_at >= FETCHES_APART_S

    async def _fetch(self, kid: object, *, renew: bool = False) -> None:
        async with self._fetching:
            if not self._may_try() or (not renew and self._known(kid) is not None):
                return
            self._tried_at = self._clock()
            try:
                async with asyncio.timeout(2 * FETCH_TIMEOUT_S):
                    keys = await asyncio.to_thread(read_keys, self._wanted)
            except (OSError, ValueError, TimeoutError) as error:
                self.problem = f"the keys of the token issuer cannot be read: {error or type(error).__name__}"
                log.warning("%s", self.problem, extra={"action": "issuer.silent", "actor": "gateway"})
                return
        if keys.keys() != self._keys.keys():
            narrate(
                log,
                f"reads {len(keys)} keys of the token issuer",
                actor="gateway",
                action="issuer.keys",
                target=self._wanted.issuer,
            )
        self._keys, self._read_at, self.problem = keys, self._clock(), ""
        self.generation += 1


def check(wanted: OidcSettings) -> None:
    """Raises SettingsError for what would let strangers in."""
    for name, url in (("issuer", wanted.issuer), ("jwks_url", wanted.jwks_url)):
        if url and not _is_safe(url):
            raise SettingsError(f"gateway.oidc.{name} must be an https:// URL; http:// is for this machine alone")
        if has_credentials(url):
            raise SettingsError(f"gateway.oidc.{name}: {REFUSAL}")
    if not wanted.audience:
        raise SettingsError("gateway.oidc.audience is not set: tokens for other services would be good here")


def read_keys(wanted: OidcSettings) -> dict[str | None, jwt.PyJWK]:
    """Keys by id. Blocks. Raises OSError, ValueError."""
    url = wanted.jwks_url
    if not url:
        found = _document(wanted.issuer.rstrip("/") + DISCOVERY)
        if found.get("issuer") != wanted.issuer:
            raise ValueError(f"the issuer calls itself {found.get('issuer')!r}")
        url = str(found.get("jwks_uri", ""))
    try:
        keys = jwt.PyJWKSet.from_dict(_document(url)).keys
    except jwt.PyJWTError as error:
        raise ValueError(f"no key set: {error}") from error
    return {key.key_id: key for key in keys if key.public_key_use in (None, "sig") and key.key_type != "oct"}


def _document(url: str) -> dict[str, Any]:
    if not _is_safe(url):
        raise ValueError(f"{url!r} is no https:// URL")
    with _OPENER.open(url, timeout=FETCH_TIMEOUT_S) as answer:
        data = answer.read(DOCUMENT_BYTES_MAX + 1)
    if len(data) > DOCUMENT_BYTES_MAX:
        raise ValueError(f"{url} is over {DOCUMENT_BYTES_MAX} bytes")
    return msgspec.json.decode(data, type=dict[str, Any])


def _is_safe(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))


class _Stay(urllib.request.HTTPRedirectHandler):
    """Keys come from where they were said to be."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Stay)
