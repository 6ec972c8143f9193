"""JSON web tokens at the door, signed and published by an issuer on this machine."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from llorch_gateway.issuer_keys import FETCHES_APART_S, IssuerKeys, check
from llorch_gateway.oidc import Oidc
from llorch_shared.auth import fingerprint
from llorch_shared.errors import ErrorCode, OrchError
from llorch_shared.http_api import Readiness
from llorch_shared.settings import OidcSettings, SettingsError
from support.gateways import Cluster
from support.tokens import bearer

AUDIENCE = "llorch"
Key = Any
"""A private key of either kind."""


class Issuer:
    """Publishes the public halves of `keys` at a port of its own, and signs."""

    def __init__(self) -> None:
        self.keys: dict[str, Key] = {"k1": Ed25519PrivateKey.generate()}
        self.fetches = 0
        self.silent = False
        issuer = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.fetches += self.path == "/keys"
                self.send_response(500 if issuer.silent else 200)
                self.end_headers()
                self.wfile.write(json.dumps(issuer.documents[self.path]).encode())

            def log_message(self, *_: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def documents(self) -> dict[str, Any]:
        return {
            "/.well-known/openid-configuration": {"issuer": self.url, "jwks_uri": f"{self.url}/keys"},
            "/keys": {"keys": [self._public(kid) for kid in self.keys]},
        }

    def _public(self, kid: str) -> dict[str, Any]:
        algorithm = jwt.algorithms.get_default_algorithms()[self._algorithm(kid)]
        public = algorithm.to_jwk(self.keys[kid].public_key(), as_dict=True)  # type: ignore[attr-defined]
        return {**public, "kid": kid, "use": "sig"}

    def _algorithm(self, kid: str) -> str:
        return "EdDSA" if isinstance(self.keys[kid], Ed25519PrivateKey) else "ES256"

    def token(self, kid: str = "k1", *, key: Key = None, algorithm: str = "", **changes: Any) -> str:
        now = int(time.time())
        claims = {
            "iss": self.url, "aud": AUDIENCE, "sub": "user-7", "iat": now, "exp": now + 600, "tenant": "blue", **changes
        }  # fmt: skip
        claims = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(claims, key or self.keys[kid], algorithm or self._algorithm(kid), headers={"kid": kid})

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    one = Issuer()
    yield one
    one.close()


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def verifier(issuer: Issuer, clock: Clock, **changes: Any) -> Oidc:
    wanted = OidcSettings(**{"issuer": issuer.url, "audience": AUDIENCE, "leeway_ms": 30_000, **changes})
    return Oidc(wanted, IssuerKeys(wanted, clock))


async def refusal(oidc: Oidc, token: str) -> OrchError:
    with pytest.raises(OrchError) as refused:
        await oidc.verify(token)
    return refused.value


async def test_a_signed_token_brings_the_work_of_the_tenant_that_its_claim_names(issuer: Issuer, clock: Clock) -> None:
    issuer.keys["k2"] = generate_private_key(SECP256R1())
    oidc = verifier(issuer, clock, requests_per_s=5, burst=7)
    for kid in ("k1", "k2"):
        identity = await oidc.verify(issuer.token(kid))
        assert identity is not None
        assert (identity.tenant, identity.crumb) == ("blue", f"oidc:{fingerprint('user-7')}")
        assert (identity.requests_per_s, identity.burst, identity.streams_max) == (5, 7, None)
    assert issuer.fetches == 1


async def test_what_is_no_such_token_is_left_to_others(issuer: Issuer, clock: Clock) -> None:
    oidc = verifier(issuer, clock)
    for token in ("plain", "a.b", "a.b.c", "...", issuer.token() + "." + "x", "x" * 20_000 + ".b.c"):
        assert await oidc.verify(token) is None
    assert issuer.fetches == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"iss": "https://other.example"}, "InvalidIssuerError"),
        ({"aud": "another-service"}, "InvalidAudienceError"),
        ({"aud": None}, "MissingRequiredClaimError"),
        ({"exp": None}, "MissingRequiredClaimError"),
        ({"sub": None}, "MissingRequiredClaimError"),
        ({"exp": int(time.time()) - 60}, "expired"),
        ({"nbf": int(time.time()) + 3600}, "ImmatureSignatureError"),
        ({"tenant": None}, "names no tenant"),
        ({"tenant": "Not a name"}, "names no tenant"),
        ({"tenant": ["blue"]}, "names no tenant"),
        ({"tenant": ""}, "names no tenant"),
    ],
)
async def test_a_token_that_is_not_for_here_is_refused(
    issuer: Issuer, clock: Clock, changes: dict[str, Any], said: str
) -> None:
    error = await refusal(verifier(issuer, clock), issuer.token(**changes))
    assert (error.status, error.code) == (401, ErrorCode.BAD_TOKEN)
    assert said in str(error)


async def test_clocks_may_differ_by_the_leeway(issuer: Issuer, clock: Clock) -> None:
    token = issuer.token(exp=int(time.time()) - 60, tenant=None, team="red")
    identity = await verifier(issuer, clock, leeway_ms=300_000, tenant_claim="team").verify(token)
    assert identity is not None
    assert identity.tenant == "red"


async def test_nobody_signs_with_what_the_issuer_has_published(issuer: Issuer, clock: Clock) -> None:
    oidc = verifier(issuer, clock)
    published = issuer.documents["/keys"]["keys"][0]["x"]
    symmetric = issuer.token(key=published, algorithm="HS256")
    stranger = issuer.token(key=Ed25519PrivateKey.generate(), algorithm="EdDSA")
    unsigned = jwt.encode({"iss": issuer.url}, "", "none", headers={"kid": "k1"})
    for token in (symmetric, stranger, unsigned):
        assert (await refusal(oidc, token)).code is ErrorCode.BAD_TOKEN


async def test_a_new_key_is_found_and_made_up_ones_cause_one_fetch(issuer: Issuer, clock: Clock) -> None:
    oidc = verifier(issuer, clock)
    assert await oidc.verify(issuer.token()) is not None
    issuer.keys["k2"] = Ed25519PrivateKey.generate()
    for _ in range(20):
        assert await oidc.verify(issuer.token("k2")) is None
    assert issuer.fetches == 1
    clock.now += FETCHES_APART_S
    assert await oidc.verify(issuer.token("k2")) is not None
    assert await oidc.verify(issuer.token()) is not None
    assert issuer.fetches == 2


async def test_a_key_that_was_taken_back_is_not_good_for_ever(issuer: Issuer, clock: Clock) -> None:
    keys = IssuerKeys(OidcSettings(issuer=issuer.url, audience=AUDIENCE, keys_max_age_ms=60_000), clock)
    assert await keys.find("k1") is not None
    issuer.keys = {"k2": Ed25519PrivateKey.generate()}
    clock.now += 61
    assert await keys.find("k1") is not None, "nobody waits for the renewal"
    assert keys.renewal is not None
    await keys.renewal
    assert await keys.find("k1") is None


async def test_a_token_is_verified_once_until_it_expires_or_keys_are_read_anew(
    issuer: Issuer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    oidc = verifier(issuer, clock, leeway_ms=0)
    decoded: list[str] = []
    decode = jwt.decode
    monkeypatch.setattr(
        jwt, "decode", lambda token, *rest, **more: decoded.append(token) or decode(token, *rest, **more)
    )
    now = time.time()
    token = issuer.token(exp=int(now) + 600)
    for _ in range(3):
        identity = await oidc.verify(token)
        assert identity is not None
        assert identity.tenant == "blue"
    assert len(decoded) == 1
    clock.now += FETCHES_APART_S
    issuer.keys["k2"] = Ed25519PrivateKey.generate()
    assert await oidc.verify(issuer.token("k2")) is not None
    assert await oidc.verify(token) is not None
    assert decoded.count(token) == 2, "the keys were read anew"
    monkeypatch.setattr("llorch_gateway.oidc.time.time", lambda: now + 601)
    await oidc.verify(token)
    assert decoded.count(token) == 3, "it has expired by this gateway's clock, and is looked at again"


async def test_a_silent_issuer_is_no_verdict_on_a_token_and_keys_that_were_read_stay(
    issuer: Issuer, clock: Clock
) -> None:
    oidc = verifier(issuer, clock, keys_max_age_ms=60_000)
    issuer.silent = True
    error = await refusal(oidc, issuer.token())
    assert (error.status, error.body.retriable) == (503, True)
    assert "cannot be read" in oidc.problem
    issuer.silent = False
    clock.now += FETCHES_APART_S
    assert await oidc.verify(issuer.token()) is not None
    assert oidc.problem == ""
    issuer.silent = True
    clock.now += 3600
    assert await oidc.verify(issuer.token()) is not None


async def test_at_the_door_it_stands_beside_the_other_tokens(cluster: Cluster, issuer: Issuer) -> None:
    wanted = OidcSettings(issuer=issuer.url, audience=AUDIENCE)
    door = await cluster.gateway(token="static", oidc=wanted)
    task = await door.submit(bearer(issuer.token()))
    other = bearer(issuer.token(sub="user-8", tenant="red"))
    for headers, status in ((bearer(issuer.token()), 200), (other, 404), (bearer("static"), 200)):
        assert (await door.get(f"/v1/tasks/{task}", **headers)).status == status
    assert (await door.get("/v1/capabilities", **bearer("none"))).error.code is ErrorCode.BAD_TOKEN
    alone = await cluster.gateway(oidc=wanted)
    assert (await alone.get("/v1/capabilities")).error.code is ErrorCode.MISSING_TOKEN
    ready = await alone.get("/readyz", **other)
    assert (ready.status, ready.json(Readiness).warnings) == (200, ())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"audience": ""}, "audience"),
        ({"issuer": "http://issuer.example"}, "issuer must be an https"),
        ({"jwks_url": "file:///etc/passwd"}, "jwks_url must be an https"),
    ],
)
def test_settings_that_would_let_strangers_in_are_refused(changes: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        check(OidcSettings(**{"issuer": "https://issuer.example", "audience": AUDIENCE, **changes}))
