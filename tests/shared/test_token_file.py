"""The token file: what it may say, who may read it, and when it has changed."""

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from llorch_shared import token_file
from llorch_shared.auth import digest
from llorch_shared.token_file import TOKENS_MAX, TokenFileError, parse
from llorch_shared.wire.task import Priority

DIGEST = digest("a").hex()


def table(name: str = "alice", sha256: str = DIGEST, more: str = "") -> str:
    return f'[[tokens]]\nname = "{name}"\nsha256 = "{sha256}"\ntenant = "t1"\n{more}\n'


def test_a_token_has_a_name_a_digest_a_tenant_and_perhaps_limits() -> None:
    plain, limited = parse(
        table()
        + table(
            "bob",
            digest("b").hex(),
            'priorities = ["batch"]\nrequests_per_s = 2.5\nburst = 9\nexpires = 2027-01-31T00:00:00Z',
        )
    )
    assert (plain.priorities, plain.requests_per_s, plain.burst_of(), plain.expires) == (tuple(Priority), None, 1, None)
    assert (limited.priorities, limited.burst_of()) == ((Priority.BATCH,), 9)
    assert limited.expires == datetime(2027, 1, 31, tzinfo=UTC)
    assert parse("") == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tokens = [", "not valid TOML"),
        (table(sha256="secret-token"), "sha256"),
        (table(sha256=DIGEST.upper()), "sha256"),
        (table("Alice"), "name"),
        (table("AUTH_TOKEN"), "name"),
        (table(more='token = "plain"'), "unknown field `token`"),
        (table(more="priorities = []"), "priorities"),
        (table(more='priorities = ["urgent"]'), "priorities"),
        (table(more="requests_per_s = 0"), "requests_per_s"),
        (table(more="expires = 2027-01-31T00:00:00"), "expires"),
        (table() + table(), "two tokens have the name alice"),
        (table() + table("bob"), "bob and alice are the same token"),
        ("".join(table(f"n{n}", f"{n:064x}") for n in range(TOKENS_MAX + 1)), "is the most"),
    ],
)
def test_what_it_may_not_say(text: str, said: str) -> None:
    with pytest.raises(TokenFileError, match=said) as refused:
        parse(text)
    assert DIGEST not in str(refused.value)


def test_only_its_owner_may_read_or_write_it(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(table())
    for mode in (0o640, 0o604, 0o620, 0o666):
        path.chmod(mode)
        with pytest.raises(TokenFileError, match=f"mode {mode:04o}.*chmod 600"):
            token_file.read(path)
    for mode in (0o600, 0o400):
        path.chmod(mode)
        assert [entry.name for entry in token_file.read(path)] == ["alice"]


def test_a_file_that_is_not_there_or_none_is_said_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(TokenFileError, match=r"none\.toml cannot be read: No such file"):
        token_file.read(tmp_path / "none.toml")
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(TokenFileError, match="not a regular file"):
        token_file.read(tmp_path / "pipe")
    assert token_file.signature(tmp_path / "none.toml") is None


def test_a_change_of_content_of_permissions_or_of_the_file_itself_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(table())
    seen = [token_file.signature(path)]
    path.write_text(table("bob-the-second"))
    seen.append(token_file.signature(path))
    other = tmp_path / "new"
    other.write_text(table("bob-the-second"))
    other.replace(path)
    seen.append(token_file.signature(path))
    assert len(set(seen)) == 3
