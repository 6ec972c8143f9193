"""`orchctl token`: a token is shown once, its digest is kept, and a file that is not ours is left alone."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from llorch_ctl import token_store
from llorch_ctl.cli import app
from llorch_ctl.exits import Problem
from llorch_shared import token_file
from llorch_shared.auth import KnownTokens, fingerprint
from llorch_shared.settings import Secret
from llorch_shared.token_file import TokenFileError
from llorch_shared.wire.task import Priority

Token = Callable[..., Result]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "secrets" / "tokens.toml"


@pytest.fixture
def token(path: Path, monkeypatch: pytest.MonkeyPatch) -> Token:
    monkeypatch.delenv("LLORCH_CONFIG", raising=False)
    monkeypatch.setenv("LLORCH_TOKENS_FILE", str(path))
    return lambda *arguments: CliRunner().invoke(app, ["token", *arguments])


def test_a_new_token_is_shown_once_and_known_by_its_digest(token: Token, path: Path) -> None:
    made = token("new", "laptop", "--tenant", "blue")
    assert made.exit_code == 0, made.output
    shown = made.stdout.strip()
    assert len(shown) >= 43
    assert path.stat().st_mode & 0o777 == 0o600
    assert shown not in path.read_text()
    identity = KnownTokens(Secret(""), token_file.read(path)).identify(shown, 0)
    assert identity is not None
    assert (identity.name, identity.tenant) == ("laptop", "blue")
    listed = token("list", "--json")
    assert json.loads(listed.stdout)["tokens"][0]["fp6"] == fingerprint(shown)
    assert token_file.read(path)[0].sha256 not in listed.output + token("list").output


def test_limits_priorities_and_expiry_are_kept_and_comments_stay(token: Token, path: Path) -> None:
    token("new", "one", "--tenant", "blue")
    path.write_text("# ours\n" + path.read_text())
    limits = ("--requests-per-s", "2.5", "--burst", "9", "--streams-max", "4", "--days", "30")
    made = token("new", "two", "-t", "red", "--priority", "batch", *limits, "--json")
    assert json.loads(made.stdout)["expires"]
    one, two = token_file.read(path)
    assert path.read_text().startswith("# ours\n")
    assert (one.name, one.expires) == ("one", None)
    assert (two.priorities, two.requests_per_s, two.burst, two.streams_max) == ((Priority.BATCH,), 2.5, 9, 4)
    assert two.expires is not None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("one", "-t", "blue"), "the name one"), (("Two", "-t", "b"), "name"), (("x", "-t", "B"), "tenant")],
)
def test_what_would_break_the_file_is_refused_and_the_file_is_as_it_was(
    token: Token, path: Path, arguments: tuple[str, ...], said: str
) -> None:
    token("new", "one", "--tenant", "blue")
    before = path.read_bytes()
    refused = token("new", *arguments)
    assert isinstance(refused.exception, Problem)
    assert said in refused.exception.message
    assert path.read_bytes() == before


def test_a_file_that_others_can_read_gets_no_token(token: Token, path: Path) -> None:
    token("new", "one", "--tenant", "blue")
    path.chmod(0o644)
    for arguments in (("new", "two", "--tenant", "blue"), ("list",)):
        refused = token(*arguments)
        assert isinstance(refused.exception, Problem)
        assert "chmod 600" in refused.exception.message


def test_without_a_file_it_says_what_to_set(token: Token, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLORCH_TOKENS_FILE")
    refused = token("list")
    assert isinstance(refused.exception, Problem)
    assert "gateway.tokens_file" in refused.exception.fix


def test_writers_at_once_lose_no_token(path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from llorch_ctl.token_store import add, fresh\n"
        "for n in range(5): add(Path(sys.argv[1]), fresh(), name=f'{sys.argv[2]}{n}', tenant='t')"
    )
    writers = [subprocess.Popen([sys.executable, "-c", script, str(path), name]) for name in ("a", "b", "c")]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert len(token_file.read(path)) == 15


def test_a_token_in_the_file_already_is_not_added_again(path: Path) -> None:
    token_store.add(path, "same", name="one", tenant="t")
    with pytest.raises(TokenFileError, match="the same token"):
        token_store.add(path, "same", name="two", tenant="t")
