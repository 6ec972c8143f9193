"""orchctl from outside: exit codes, JSON, and messages that say what to do."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer
from rich.markup import render
from typer.core import TyperCommand, TyperGroup
from typer.testing import CliRunner

from llorch_ctl import __main__, bus_client, checks, gpu
from llorch_ctl.cli import app
from llorch_ctl.exits import MEANINGS, Exit
from llorch_ctl.gpu import GpuSurvey
from llorch_shared.bus.nats import connect
from llorch_shared.settings import NatsSettings
from llorch_shared.settings_loading import load
from support.nats_server import NatsServer, free_port

Orchctl = Callable[..., tuple[int, str, str]]
TASK = "0d7ecc1e-1fd6-4b8e-9f4a-1d2f7e0a3b5c"
README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(autouse=True)
def nothing_around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """No system, no GPU, a state folder of its own."""
    monkeypatch.setenv("NATS_URL", f"nats://127.0.0.1:{free_port()}")
    monkeypatch.setenv("ORCHD_ADDR", f"127.0.0.1:{free_port()}")
    monkeypatch.setenv("LLORCH_STATE_DIR", str(tmp_path / "state"))
    for name in ("LLORCH_CONFIG", "LLORCH_PROFILE", "AUTH_TOKEN", "LLORCH_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(bus_client, "CONNECT_WITHIN_S", 5.0 if "nats_server" in request.fixturenames else 0.3)
    monkeypatch.setattr(gpu, "survey", lambda: GpuSurvey(problem="none here"))


@pytest.fixture
def orchctl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Orchctl:
    """Runs a command; returns exit code, standard output and standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["orchctl", *arguments])
        with pytest.raises(SystemExit) as exit_:
            __main__.main()
        out, err = capsys.readouterr()
        return int(exit_.value.code or 0), out, err

    return run


@pytest.mark.parametrize(
    "arguments",
    [
        ("status",),
        ("engine", "status"),
        ("engine", "up", "a"),
        ("config", "apply"),
        ("why", TASK),
        ("pool", "show", "a"),
        ("pool", "set", "a", "slots=2"),
        ("pool", "rollback", "a"),
        ("tenant", "list"),
        ("catalog", "show", "a"),
        ("session", "show", TASK),
        ("artifact", "list"),
        ("audit", "list"),
        ("task", "show", TASK),
        ("task", "cancel", TASK),
        ("task", "stream", TASK),
        ("task", "submit", "hi"),
    ],
)
def test_nobody_there_is_exit_3_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, orchctl: Orchctl, arguments: tuple[str, ...]
) -> None:
    code, out, _ = orchctl(*arguments, "--json")
    error = json.loads(out)["error"]
    assert code == Exit.UNREACHABLE == error["exit_code"]
    assert "nobody answers at" in error["message"]
    assert "orchctl up" in error["fix"]


def test_no_gpu_stops_up_with_the_requirement_and_the_way_out(
    monkeypatch: pytest.MonkeyPatch, orchctl: Orchctl
) -> None:
    code, _, err = orchctl("up")
    assert code == Exit.FAILED
    assert "ORCH-1102" in err
    assert "make demo" in err


def test_a_taken_port_is_named_with_who_has_it(
    monkeypatch: pytest.MonkeyPatch, orchctl: Orchctl, nats_server: NatsServer
) -> None:
    monkeypatch.setenv("NATS_URL", nats_server.url)
    code, out, _ = orchctl("up", "--profile", "ci", "--json")
    assert code == Exit.FAILED
    said = json.loads(out)["error"]["message"]
    assert f"127.0.0.1:{nats_server.port} (nats.url) is in use by nats-server (pid" in said


def test_credentials_in_the_address_of_the_bus_are_not_shown(
    monkeypatch: pytest.MonkeyPatch, orchctl: Orchctl, nats_server: NatsServer
) -> None:
    for address in (nats_server.url, f"nats://127.0.0.1:{free_port()}"):
        monkeypatch.setenv("NATS_URL", address.replace("//", "//me:hunter2@"))
        code, out, err = orchctl("status")
        assert code == Exit.UNREACHABLE
        assert "127.0.0.1" in err
        assert "hunter2" not in out + err


def test_a_bus_without_a_system_is_told(
    monkeypatch: pytest.MonkeyPatch, orchctl: Orchctl, nats_server: NatsServer
) -> None:
    monkeypatch.setenv("NATS_URL", nats_server.url)
    code, _, err = orchctl("status")
    assert code == Exit.UNREACHABLE
    assert "holds no llama-orch" in err


def test_applied_pools_show_in_status(
    monkeypatch: pytest.MonkeyPatch, orchctl: Orchctl, nats_server: NatsServer, tmp_path: Path
) -> None:
    monkeypatch.setenv("NATS_URL", nats_server.url)
    config = tmp_path / "llorch.toml"
    orchctl("config", "example")
    config.write_text(CliRunner().invoke(app, ["config", "example"]).output)
    code, out, _ = orchctl("config", "apply", "-c", str(config), "--json")
    assert (code, json.loads(out)) == (0, {"changes": ["pool small is defined"]})
    code, out, _ = orchctl("status", "--json")
    shown = json.loads(out)
    assert code == Exit.FAILED, "nothing serves"
    assert not shown["healthy"]
    assert {service["name"]: service["ok"] for service in shown["services"]} == {
        "nats-server": True,
        "gateway": False,
        "scheduler": False,
        "poold": False,
    }
    assert shown["pools"][0]["queued"] == {"interactive": 0, "batch": 0}
    code, out, _ = orchctl("status")
    assert "small" in out
    code, out, _ = orchctl("engine", "down", "small", "--json")
    assert (code, json.loads(out)) == (0, {"replicas": []})
    code, out, _ = orchctl("engine", "down", "other", "--json")
    assert code == Exit.USAGE
    code, out, _ = orchctl("config", "apply", "--built-in", "--json")
    assert (code, json.loads(out)) == (
        0,
        {"changes": ["pool default is defined", "pool small is no longer in the config and is removed"]},
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("task", "show", "1"),
        ("task", "stream", TASK, "--after", "x"),
        ("frobnicate",),
        ("task", "submit", "x", "-n", "0"),
    ],
)
def test_wrong_arguments_are_exit_2(
    monkeypatch: pytest.MonkeyPatch, orchctl: Orchctl, arguments: tuple[str, ...]
) -> None:
    assert orchctl(*arguments)[0] == Exit.USAGE


def test_a_wrong_config_file_is_exit_2_and_names_the_key(
    monkeypatch: pytest.MonkeyPatch, orchctl: Orchctl, tmp_path: Path
) -> None:
    config = tmp_path / "llorch.toml"
    config.write_text("[gateway]\naddres = '127.0.0.1:1'\n")
    code, _, err = orchctl("config", "show", "-c", str(config))
    assert code == Exit.USAGE
    assert "addres" in err
    assert "config example" in err


def test_the_example_config_is_valid_and_shown_config_reads_back_the_same(tmp_path: Path) -> None:
    example, shown = tmp_path / "example.toml", tmp_path / "shown.toml"
    example.write_text(CliRunner().invoke(app, ["config", "example"]).output)
    settings = load({}, file=example)
    assert [pool.id for pool in settings.pools] == ["small"]
    shown.write_text(CliRunner().invoke(app, ["config", "show", "-c", str(example)]).output)
    assert load({}, file=shown).pools == settings.pools


def help_texts(command: TyperCommand | TyperGroup) -> Iterator[str]:
    yield from (text for text in (command.help, command.epilog) if text)
    yield from (text for each in command.params if (text := getattr(each, "help", None)))
    for below in getattr(command, "commands", {}).values():
        yield from help_texts(below)


def test_no_help_text_loses_a_word_to_markup() -> None:
    texts = list(help_texts(typer.main.get_command(app)))
    assert len(texts) > 50
    for text in texts:
        assert render(text).plain == text.replace("\\[", "["), "write a bracket as \\["


def test_a_setting_of_the_command_line_beats_the_environment_and_is_checked(orchctl: Orchctl) -> None:
    code, out, _ = orchctl("config", "show", "--json", "--set", "gateway.addr=127.0.0.1:9", "--set", "log_level=debug")
    shown = json.loads(out)
    assert (code, shown["gateway"]["addr"], shown["log_level"]) == (0, "127.0.0.1:9", "debug")
    code, out, _ = orchctl("config", "show", "--json", "--set", 'gateway.cors_origins=["https://chat.example"]')
    assert (code, json.loads(out)["gateway"]["cors_origins"]) == (0, ["https://chat.example"])
    for wrong, named in (
        (("gateway.adr=1",), "did you mean 'addr'?"),
        (("gateway.addr",), "not KEY=VALUE"),
        (("gateway=1", "gateway.addr=x"), "a value of its own"),
        (("gateway.streams_max=0",), "$.gateway.streams_max"),
    ):
        code, _, err = orchctl("config", "show", *(word for one in wrong for word in ("--set", one)))
        assert (code, named in err) == (2, True), err


def test_config_show_hides_the_environment_of_engines(orchctl: Orchctl, tmp_path: Path) -> None:
    file = tmp_path / "llorch.toml"
    file.write_text('[[pools]]\nid = "a"\nengine = "mock"\nmodel = "m"\nprovisioning.env = {TOKEN = "hunter2"}\n')
    for flags in ((), ("--json",)):
        code, out, _ = orchctl("config", "show", "--config", str(file), *flags)
        assert (code, "hunter2" in out, "(hidden)" in out) == (Exit.OK, False, True)


def test_exit_codes_stand_in_help_and_readme() -> None:
    said = " ".join(CliRunner().invoke(app, ["--help"], env={"COLUMNS": "300"}).output.split())
    readme = README.read_text()
    for code, meaning in MEANINGS.items():
        assert f"{int(code)} {meaning}" in said
        assert f"| {int(code)} | {meaning} |" in readme


def test_version_is_json(monkeypatch: pytest.MonkeyPatch, orchctl: Orchctl) -> None:
    monkeypatch.setattr(sys, "argv", ["orchctl", "version", "--json"])
    result = CliRunner().invoke(app, ["version", "--json"])
    assert set(json.loads(result.output)) == {"llama-orch", "api", "python", "nats-server"}


def doctor(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, dict[str, dict[str, str]]]:
    """Exit code and checks by name; the package index is asked in no test."""
    found = checks.Check(name="package index", verdict=checks.Verdict.OK, found="not asked")
    monkeypatch.setattr(checks, "_package_index", lambda: found)
    result = CliRunner().invoke(app, ["doctor", "--json", *arguments])
    return result.exit_code, {check["name"]: check for check in json.loads(result.output)["checks"]}


def test_doctor_names_what_lacks_and_what_mends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    code, found = doctor(monkeypatch)
    assert code == Exit.FAILED
    assert found["gpu"]["verdict"] == "lack"
    assert "nvidia-smi" in found["gpu"]["fix"]
    good = {name for name, check in found.items() if check["verdict"] == "ok"}
    assert {"python", "disk", "nats-server", "port (http)", "port (bus)"} <= good


def test_doctor_finds_nothing_lacking_on_a_machine_for_the_ci_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLORCH_PROFILE", "ci")
    code, found = doctor(monkeypatch)
    assert code == Exit.OK
    assert found["gpu"]["verdict"] == "note"


def test_doctor_shows_a_taken_port_and_a_broken_config(
    monkeypatch: pytest.MonkeyPatch, nats_server: NatsServer, tmp_path: Path
) -> None:
    monkeypatch.setenv("NATS_URL", nats_server.url)
    _, found = doctor(monkeypatch)
    assert "nats-server" in found["port (bus)"]["found"]
    broken = tmp_path / "broken.toml"
    broken.write_text("profile = 'warp'\n")
    code, found = doctor(monkeypatch, "--config", str(broken))
    assert code == Exit.FAILED
    assert found["config"]["verdict"] == "lack"


async def test_ctrl_c_ends_a_watch_with_130(nats_server: NatsServer) -> None:
    from llorch_shared import streams

    bus = await connect(NatsSettings(url=nats_server.url), name="test")
    await bus.ensure(streams.base())
    await bus.close()
    environment = {**os.environ, "NATS_URL": nats_server.url}
    command = [sys.executable, "-m", "llorch_ctl", "status", "--watch", "--json"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["healthy"] is False
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == Exit.INTERRUPTED
    process.stdout.close()
