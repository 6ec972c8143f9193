"""Log files, what the terminal shows of them, the lock on a state folder, and ports."""

import io
import os
import socket
from pathlib import Path

import pytest
from rich.console import Console

from llorch_ctl import config_file, ports
from llorch_ctl.exits import Problem
from llorch_ctl.logfiles import LogFile, LogView, read_line
from llorch_ctl.state_dir import StateDir
from llorch_shared.settings_loading import load

JSON_LINE = b'{"ts":"2026-01-01T00:00:00.000Z","level":"%b","service":"gateway","human":"a task [bold]comes[/] in"}'
NATS_LINE = b"[12] 2026/01/01 00:00:00.000000 [%b] Server is ready"


def shown(service: str, line: bytes, *, raw: bool = False, quiet: bool = False, stopping: bool = False) -> str:
    out = io.StringIO()
    view = LogView(Console(file=out, width=200), raw=raw, quiet=quiet)
    view.stopping = stopping
    view.show(service, line)
    return out.getvalue()


def test_a_line_is_shown_as_its_sentence_and_nothing_in_it_is_markup() -> None:
    assert shown("gateway", JSON_LINE % b"info").rstrip().endswith("gateway     a task [bold]comes[/] in")


def test_raw_passes_lines_on_unchanged() -> None:
    assert shown("gateway", JSON_LINE % b"info", raw=True) == (JSON_LINE % b"info").decode() + "\n"


@pytest.mark.parametrize(
    ("line", "quiet", "stopping", "visible"),
    [
        (JSON_LINE % b"info", True, False, False),
        (JSON_LINE % b"warning", True, False, True),
        (JSON_LINE % b"warning", True, True, False),
        (JSON_LINE % b"error", True, True, True),
        (JSON_LINE % b"debug", False, False, False),
        (NATS_LINE % b"INF", False, False, False),
        (NATS_LINE % b"WRN", True, False, False),
        (NATS_LINE % b"ERR", True, False, True),
        (b"Traceback (most recent call last):", False, False, True),
    ],
)
def test_what_is_worth_showing(line: bytes, quiet: bool, stopping: bool, visible: bool) -> None:
    assert bool(shown("gateway", line, quiet=quiet, stopping=stopping)) is visible


def test_an_exception_is_shown_with_its_sentence() -> None:
    read = read_line(b'{"level":"error","human":"it broke","exception":"Traceback: x"}')
    assert read is not None
    assert read.text == "it broke\nTraceback: x"


def test_a_log_file_stays_bounded_and_keeps_the_newest(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "logs" / "a.log", bytes_max=100, kept=3)
    for number in range(100):
        log.write(b"line %03d" % number)
    log.close()
    files = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert files == ["a.log", "a.log.1", "a.log.2"]
    assert all(path.stat().st_size <= 100 for path in (tmp_path / "logs").iterdir())
    assert (tmp_path / "logs" / "a.log").read_text().endswith("line 099\n")
    assert list(log.tail)[-1] == "line 099"


def test_a_log_file_goes_on_after_a_restart(tmp_path: Path) -> None:
    for text in (b"first", b"second"):
        log = LogFile(tmp_path / "a.log")
        log.write(text)
        log.close()
    assert (tmp_path / "a.log").read_text() == "first\nsecond\n"


def test_two_systems_do_not_share_a_state_folder(tmp_path: Path) -> None:
    with StateDir(tmp_path), pytest.raises(Problem, match=rf"another orchctl \(pid {os.getpid()}\) runs") as problem:
        StateDir(tmp_path).__enter__()
    assert "--state-dir" in problem.value.fix
    with StateDir(tmp_path):
        pass


def test_a_state_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Problem, match="cannot use the state folder"):
        StateDir(tmp_path / "file" / "below").__enter__()


def test_a_listening_port_is_not_free_and_its_owner_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert not ports.is_free("127.0.0.1", port)
        assert f"(pid {os.getpid()})" in ports.owner(port)
    assert ports.is_free("127.0.0.1", port)


def test_children_get_every_setting_from_the_effective_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHD_ADDR", "127.0.0.1:1")
    monkeypatch.setenv("AUTH_TOKEN", "s3cret")
    settings = load(flags={"gateway": {"addr": "127.0.0.1:2"}})
    path = tmp_path / "config.toml"
    config_file.write(settings, path)
    environment = config_file.child_environment(path)
    assert load(environment) == settings
    assert load(environment).gateway.addr == "127.0.0.1:2"
    assert environment["AUTH_TOKEN"] == "s3cret"
    assert "s3cret" not in path.read_text()


def test_a_disk_that_takes_no_line_costs_lines_and_nobody_stands_still(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "logs" / "a.log")
    log.write(b"first")
    log.close()
    (tmp_path / "logs").rename(tmp_path / "away")
    (tmp_path / "logs").write_text("no folder any more")
    for _ in range(3):
        log.write(b"lost")
    (tmp_path / "logs").unlink()
    (tmp_path / "away").rename(tmp_path / "logs")
    log.write(b"last")
    log.close()
    assert (tmp_path / "logs" / "a.log").read_bytes() == b"first\n(3 lines could not be written)\nlast\n"
    assert list(log.tail) == ["first", "lost", "lost", "lost", "last"]


def test_a_log_without_a_file_keeps_its_last_lines() -> None:
    log = LogFile(None)
    log.write(b"said")
    log.close()
    assert list(log.tail) == ["said"]
