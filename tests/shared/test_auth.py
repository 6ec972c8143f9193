"""The auth seam, decided without a server (AUTH-1001..1008)."""

from datetime import UTC, datetime
from typing import Any

import pytest

from llorch_shared.auth import (
    EVERY_PRIORITY,
    STATIC,
    AuthPolicy,
    Caller,
    KnownTokens,
    NonLoopbackWithoutToken,
    bad_token,
    bearer,
    check_bind,
    digest,
    fingerprint,
    is_loopback,
)
from llorch_shared.errors import ErrorCode, OrchError
from llorch_shared.settings import Secret
from llorch_shared.token_file import TokenEntry
from llorch_shared.wire.task import Priority

TOKEN = Secret("s3cret")
NONE = Secret("")
LOCAL, LAN = "127.0.0.1", "10.0.0.7"
RIGHT, WRONG = "Bearer s3cret", "Bearer guess"
OK_TOKEN, OK_LOCAL = f"token:{fingerprint('s3cret')}", "localhost"
MISSING, BAD, CLOSED = ErrorCode.MISSING_TOKEN, ErrorCode.BAD_TOKEN, ErrorCode.NON_LOOPBACK_WITHOUT_TOKEN


@pytest.mark.parametrize(
    ("policy", "peer", "sent", "proxied", "wanted"),
    [
        (AuthPolicy(True), LOCAL, RIGHT, False, OK_TOKEN),
        (AuthPolicy(True), LAN, RIGHT, False, OK_TOKEN),
        (AuthPolicy(True), LAN, RIGHT, True, OK_TOKEN),
        (AuthPolicy(True), LOCAL, None, False, MISSING),
        (AuthPolicy(True), LAN, None, False, MISSING),
        (AuthPolicy(True), LOCAL, "Basic s3cret", False, MISSING),
        (AuthPolicy(True), LOCAL, WRONG, False, BAD),
        (AuthPolicy(True, auth_optional=True), LOCAL, None, False, OK_LOCAL),
        (AuthPolicy(True, auth_optional=True), LOCAL, RIGHT, False, OK_TOKEN),
        (AuthPolicy(True, auth_optional=True), LOCAL, WRONG, False, BAD),
        (AuthPolicy(True, auth_optional=True), LOCAL, None, True, MISSING),
        (AuthPolicy(True, auth_optional=True, trust_proxy_auth=True), LOCAL, None, True, OK_LOCAL),
        (AuthPolicy(True, auth_optional=True, trust_proxy_auth=True), LAN, None, True, MISSING),
        (AuthPolicy(True, auth_optional=True), LAN, None, False, MISSING),
        (AuthPolicy(False), LOCAL, None, False, OK_LOCAL),
        (AuthPolicy(False), LOCAL, WRONG, False, OK_LOCAL),
        (AuthPolicy(False), LOCAL, None, True, CLOSED),
        (AuthPolicy(False), LAN, None, False, CLOSED),
        (AuthPolicy(False), "", None, False, CLOSED),
    ],
)
def test_who_is_let_in_and_as_whom(
    policy: AuthPolicy, peer: str, sent: str | None, proxied: bool, wanted: str | ErrorCode
) -> None:
    caller = Caller(peer=peer, authorization=sent, proxied=proxied)
    if isinstance(wanted, ErrorCode):
        with pytest.raises(OrchError) as refused:
            identified(policy, caller)
        assert refused.value.code is wanted
        assert "s3cret" not in str(refused.value)
    else:
        assert identified(policy, caller) == wanted


def identified(policy: AuthPolicy, caller: Caller) -> str:
    presented = policy.presented(caller)
    if presented is None:
        return OK_LOCAL
    identity = KnownTokens(TOKEN).identify(presented, 0)
    if identity is None:
        raise bad_token()
    return identity.crumb


def entry(token: str, **changes: Any) -> TokenEntry:
    fields: dict[str, Any] = {"name": token, "sha256": digest(token).hex(), "tenant": f"of-{token}"}
    return TokenEntry(**{**fields, **changes})


def test_a_token_of_the_file_says_whose_work_it_brings_and_what_it_permits() -> None:
    known = KnownTokens(
        TOKEN, [entry("a"), entry("b", priorities=(Priority.BATCH,), requests_per_s=2.5, streams_max=3)]
    )
    first, second, static = (known.identify(token, 0) for token in ("a", "b", "s3cret"))
    assert first is not None
    assert second is not None
    assert static is not None
    assert (first.name, first.tenant, first.crumb) == ("a", "of-a", f"token:{fingerprint('a')}")
    assert (first.priorities, first.requests_per_s, first.streams_max) == (EVERY_PRIORITY, None, None)
    assert (second.priorities, second.requests_per_s, second.burst, second.streams_max) == ({Priority.BATCH}, 2.5, 3, 3)
    assert (static.name, static.tenant) == (STATIC, "")
    assert known.identify("c", 0) is None


def test_every_known_token_is_compared_whichever_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    known = KnownTokens(TOKEN, [entry("a"), entry("b")])
    compared: list[bytes] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(other)
        return one == other

    monkeypatch.setattr("hmac.compare_digest", compare)
    for token in ("a", "b", "s3cret", "c"):
        known.identify(token, 0)
    assert compared == [digest(token) for token in ("a", "b", "s3cret")] * 4


def test_an_expired_token_is_refused_from_its_second_on() -> None:
    known = KnownTokens(NONE, [entry("a", expires=datetime(2027, 1, 31, tzinfo=UTC))])
    until = datetime(2027, 1, 31, tzinfo=UTC).timestamp()
    assert known.identify("a", until - 1) is not None
    with pytest.raises(OrchError, match="expired") as refused:
        known.identify("a", until)
    assert refused.value.code is BAD


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("[::1]", True),
        ("::ffff:127.0.0.1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("::ffff:10.0.0.1", False),
        ("192.168.0.1", False),
        ("gpu-box", False),
        ("", False),
    ],
)
def test_what_counts_as_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_a_bind_beyond_loopback_without_a_token_is_refused() -> None:
    with pytest.raises(NonLoopbackWithoutToken, match=r"0\.0\.0\.0.*AUTH_TOKEN"):
        check_bind("0.0.0.0", guarded=False)
    check_bind("0.0.0.0", guarded=True)
    check_bind("127.0.0.1", guarded=False)


@pytest.mark.parametrize(
    ("header", "token"),
    [("Bearer x", "x"), ("bearer  x ", "x"), ("Bearer ", None), ("Bearer", None), ("Token x", None), (None, None)],
)
def test_only_a_bearer_header_carries_a_token(header: str | None, token: str | None) -> None:
    assert bearer(header) == token
