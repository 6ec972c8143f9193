"""The auth seam, decided without a server (AUTH-1001..1008)."""

import pytest

from llorch_shared.auth import AuthPolicy, Caller, NonLoopbackWithoutToken, bearer, check_bind, fingerprint, is_loopback
from llorch_shared.errors import ErrorCode, OrchError
from llorch_shared.settings import Secret

TOKEN = Secret("s3cret")
NONE = Secret("")
LOCAL, LAN = "127.0.0.1", "10.0.0.7"
RIGHT, WRONG = "Bearer s3cret", "Bearer guess"
OK_TOKEN, OK_LOCAL = f"token:{fingerprint('s3cret')}", "localhost"
MISSING, BAD, CLOSED = ErrorCode.MISSING_TOKEN, ErrorCode.BAD_TOKEN, ErrorCode.NON_LOOPBACK_WITHOUT_TOKEN


@pytest.mark.parametrize(
    ("policy", "peer", "sent", "proxied", "wanted"),
    [
        (AuthPolicy(TOKEN), LOCAL, RIGHT, False, OK_TOKEN),
        (AuthPolicy(TOKEN), LAN, RIGHT, False, OK_TOKEN),
        (AuthPolicy(TOKEN), LAN, RIGHT, True, OK_TOKEN),
        (AuthPolicy(TOKEN), LOCAL, None, False, MISSING),
        (AuthPolicy(TOKEN), LAN, None, False, MISSING),
        (AuthPolicy(TOKEN), LOCAL, "Basic s3cret", False, MISSING),
        (AuthPolicy(TOKEN), LOCAL, WRONG, False, BAD),
        (AuthPolicy(TOKEN, auth_optional=True), LOCAL, None, False, OK_LOCAL),
        (AuthPolicy(TOKEN, auth_optional=True), LOCAL, RIGHT, False, OK_TOKEN),
        (AuthPolicy(TOKEN, auth_optional=True), LOCAL, WRONG, False, BAD),
        (AuthPolicy(TOKEN, auth_optional=True), LOCAL, None, True, MISSING),
        (AuthPolicy(TOKEN, auth_optional=True, trust_proxy_auth=True), LOCAL, None, True, OK_LOCAL),
        (AuthPolicy(TOKEN, auth_optional=True, trust_proxy_auth=True), LAN, None, True, MISSING),
        (AuthPolicy(TOKEN, auth_optional=True), LAN, None, False, MISSING),
        (AuthPolicy(NONE), LOCAL, None, False, OK_LOCAL),
        (AuthPolicy(NONE), LOCAL, WRONG, False, OK_LOCAL),
        (AuthPolicy(NONE), LOCAL, None, True, CLOSED),
        (AuthPolicy(NONE), LAN, None, False, CLOSED),
        (AuthPolicy(NONE), "", None, False, CLOSED),
    ],
)
def test_who_is_let_in_and_as_whom(
    policy: AuthPolicy, peer: str, sent: str | None, proxied: bool, wanted: str | ErrorCode
) -> None:
    caller = Caller(peer=peer, authorization=sent, proxied=proxied)
    if isinstance(wanted, ErrorCode):
        with pytest.raises(OrchError) as refused:
            policy.identify(caller)
        assert refused.value.code is wanted
        assert "s3cret" not in str(refused.value)
    else:
        assert policy.identify(caller) == wanted


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
        check_bind("0.0.0.0", NONE)
    check_bind("0.0.0.0", TOKEN)
    check_bind("127.0.0.1", NONE)


@pytest.mark.parametrize(
    ("header", "token"),
    [("Bearer x", "x"), ("bearer  x ", "x"), ("Bearer ", None), ("Bearer", None), ("Token x", None), (None, None)],
)
def test_only_a_bearer_header_carries_a_token(header: str | None, token: str | None) -> None:
    assert bearer(header) == token
