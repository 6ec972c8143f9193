"""orchctl as a command that talks to a bus of its own."""

import sys

import pytest

from llorch_ctl import __main__
from support.nats_server import NatsServer
from support.orchctl import Orchctl


@pytest.fixture
def orchctl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], nats_server: NatsServer) -> Orchctl:
    """Runs a command against a bus with the streams of a system; returns exit code, output and errors."""
    monkeypatch.setenv("NATS_URL", nats_server.url)
    monkeypatch.delenv("LLORCH_CONFIG", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["orchctl", *arguments])
        with pytest.raises(SystemExit) as exit_:
            __main__.main()
        out, err = capsys.readouterr()
        return int(exit_.value.code or 0), out, err

    return run
