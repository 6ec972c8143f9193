"""JSON web tokens of an OpenID issuer, as a second way to say who calls: signature, issuer, audience, times, tenant.

Only signatures with public keys are believed, so that nobody who has read the keys can sign. What the issuer says by a
token's claims is believed once the signature is; whose work it is stands in one of them.
"""

import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import jwt

from llorch_gateway.issuer_keys import IssuerKeys
from llorch_shared.auth import Identity, digest, fingerprint
from llorch_shared.errors import ErrorCode, OrchError
from llorch_shared.identifiers import is_name
from llorch_shared.settings import OidcSettings

ALGORITHMS: Final = ("EdDSA", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512", "RS256", "RS384", "RS512")
REQUIRED: Final = ("aud", "exp", "iss", "sub")
TOKEN_CHARS_MAX: Final = 16 * 1024
VERIFIED_MAX: Final = 4_096
"""Tokens whose signature need not be looked at again until they expire or the keys are read anew: that takes a third of
a millisecond, and callers send the same one for minutes. Digests are kept, not tokens."""


class _Verified(NamedTuple):
    identity: Identity
    until_s: float
    """Unix time; after it the leeway is asked."""
    generation: int


class Oidc:
    """A Verifier. `wanted.issuer` and `wanted.audience` are set."""

    def __init__(self, wanted: OidcSettings, keys: IssuerKeys) -> None:
        self._wanted: Final = wanted
        self._keys: Final = keys
        self._verified: dict[bytes, _Verified] = {}

    @property
    def problem(self) -> str:
        return self._keys.problem

    async def verify(self, token: str) -> Identity | None:
        """None when it is no such token, or its key is none of the issuer's. Raises OrchError: BAD_TOKEN for one that
        is not good, 503 while the issuer's keys cannot be had."""
        if token.count(".") != 2 or len(token) > TOKEN_CHARS_MAX:
            return None
        verified = self._verified.get(digest(token))
        if verified is not None and verified.generation == self._keys.generation and time.time() < verified.until_s:
            self._keys.keep_fresh()
            return verified.identity
        try:
            header = jwt.get_unverified_header(token)
        except jwt.InvalidTokenError:
            return None
        key = await self._keys.find(header.get("kid"))
        if key is None:
            return None
        generation = self._keys.generation
        claims = self._claims(token, key)
        identity = self._identity(claims)
        self._remember(token, _Verified(identity, float(claims["exp"]), generation))
        return identity

    def _remember(self, token: str, verified: "_Verified") -> None:
        if len(self._verified) >= VERIFIED_MAX:
            del self._verified[next(iter(self._verified))]
        self._verified[digest(token)] = verified

    def _claims(self, token: str, key: jwt.PyJWK) -> Mapping[str, Any]:
        wanted = self._wanted
        try:
            return jwt.decode(
                token,
                key,
                algorithms=ALGORITHMS,
                audience=wanted.audience,
                issuer=wanted.issuer,
                leeway=wanted.leeway_ms / 1000,
                options={"require": list(REQUIRED)},
            )
        except jwt.ExpiredSignatureError as error:
            raise _bad("the bearer token has expired") from error
        except jwt.InvalidTokenError as error:
            raise _bad(f"the bearer token is not good here: {type(error).__name__}") from error

    def _identity(self, claims: Mapping[str, Any]) -> Identity:
        wanted = self._wanted
        tenant = claims.get(wanted.tenant_claim)
        if not isinstance(tenant, str) or not is_name(tenant):
            raise _bad(f"the claim {wanted.tenant_claim!r} of the bearer token names no tenant")
        subject = str(claims["sub"])
        return Identity(
            name=f"oidc:{subject}",
            crumb=f"oidc:{fingerprint(subject)}",
            tenant=tenant,
            requests_per_s=wanted.requests_per_s,
            burst=wanted.burst,
            streams_max=wanted.streams_max,
        )


def _bad(message: str) -> OrchError:
    return OrchError(ErrorCode.BAD_TOKEN, message, hint="ask the issuer for a new one")
