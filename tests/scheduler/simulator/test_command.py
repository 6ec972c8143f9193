"""The simulator at the command line, by itself and through orchctl."""

import ast
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import llorch_scheduler.simulator
from llorch_ctl import __main__ as orchctl_main
from llorch_ctl import simulation
from llorch_ctl.commands.simulate import simulate as simulate_command
from llorch_ctl.exits import Exit, Problem
from llorch_scheduler.simulator.page import page
from llorch_scheduler.simulator.scenarios import SCENARIOS
from llorch_scheduler.simulator.scenarios import scenario as shipped
from llorch_scheduler.simulator.simulation import Simulation
from llorch_scheduler.simulator.summary import summarise
from llorch_shared.wire.simulated import encode
from scheduler.simulator_scenarios import Watched

ARGV = [sys.executable, "-m", "llorch_scheduler.simulator"]
PACKAGE = Path(llorch_scheduler.simulator.__file__).parent
SOURCES = [Path(__file__).parents[3] / folder for folder in ("services/scheduler", "shared")]
IMPURE = {"asyncio", "nats", "os", "time", "logging", "pathlib", "sys", "signal", "subprocess"}
AT_THE_EDGE = {"command.py", "__main__.py"}

Orchctl = Callable[..., tuple[int, str, str]]


@pytest.fixture
def orchctl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Orchctl:
    """Runs a command; returns exit code, standard output and standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["orchctl", *arguments])
        with pytest.raises(SystemExit) as exit_:
            orchctl_main.main()
        out, err = capsys.readouterr()
        return int(exit_.value.code or 0), out, err

    return run


def simulate(*arguments: str, hash_seed: int = 0) -> bytes:
    env = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    return subprocess.run([*ARGV, *arguments], env=env, check=True, capture_output=True).stdout


def test_equal_seeds_give_equal_bytes_and_others_do_not(tmp_path: Path) -> None:
    pages = [tmp_path / "a.html", tmp_path / "b.html"]
    first = simulate("node-loss", "--tasks=1200", "--seed=7", f"--html={pages[0]}", hash_seed=1)
    again = simulate("node-loss", "--tasks=1200", "--seed=7", f"--html={pages[1]}", hash_seed=2)
    assert first == again
    assert pages[0].read_bytes() == pages[1].read_bytes()
    assert json.loads(first)["requeues"], "nothing was lost, so little was shown"
    assert simulate("node-loss", "--tasks=1200", "--seed=8") != first


@pytest.mark.parametrize("name", ["team", "deadline-mix", "node-loss"])
def test_the_core_at_hand_gives_the_bytes_that_its_sources_give(name: str) -> None:
    """The one at hand may be compiled (`make compiled`)."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, SOURCES))}
    arguments = [*ARGV, name, "--tasks=400", "--seed=5"]
    interpreted = subprocess.run(arguments, env=env, check=True, capture_output=True).stdout
    assert encode(summarise(Simulation(shipped(name, tasks=400), 5).run(), scale=1.0)) == interpreted


def test_a_comparison_under_overload_is_equal_to_the_byte(tmp_path: Path) -> None:
    policy = tmp_path / "other.toml"
    policy.write_text('[[pools]]\nid = "busy"\n[pools.queue]\ncapacity = 20\n')
    arguments = ("overload", "--tasks=500", f"--policy={policy}")
    first = simulate(*arguments, hash_seed=3)
    assert first == simulate(*arguments, hash_seed=4)
    assert json.loads(first)["other"]["returns"]["tries"] > 0


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("[[pools]]\nid = 'x'\n", "there are chat"),
        ("[[pools]\n", "other.toml"),
        ("x = 1\n", "no [[pools]]"),
    ],
)
def test_a_policy_that_cannot_be_compared_with_is_2(orchctl: Orchctl, tmp_path: Path, policy: str, said: str) -> None:
    file = tmp_path / "other.toml"
    file.write_text(policy)
    code, _, err = orchctl("simulate", "home", "--policy", str(file))
    assert code == Exit.USAGE
    assert said in err


def test_orchctl_says_who_would_have_waited_how_long(orchctl: Orchctl, tmp_path: Path) -> None:
    file = tmp_path / "other.toml"
    file.write_text('[[pools]]\nid = "chat"\n[pools.queue]\ncapacity = 2\n')
    html = tmp_path / "both.html"
    code, out, err = orchctl("simulate", "home", "--tasks=80", "--policy", str(file), "--html", str(html))
    assert code == Exit.OK, err
    first, second = [line.split() for line in out.splitlines() if {"present", "other"} & set(line.split())][:2]
    assert (first[0], first[-7], second[0]) == ("interactive", "present", "other")
    assert "Difference: present / other" in html.read_text()


def test_neither_scenario_nor_recording_is_told_what_there_is(orchctl: Orchctl) -> None:
    code, _, err = orchctl("simulate")
    assert code == Exit.USAGE
    assert "noisy-neighbour" in err


def test_ctrl_c_gives_what_there_is_and_130() -> None:
    child = subprocess.Popen(
        [*ARGV, "fleet", "--progress", "json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    assert child.stderr is not None
    json.loads(child.stderr.readline())
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=30)
    result = json.loads(out)
    assert child.returncode == 130, err
    assert result["partial"] is True
    assert result["arrived"] < result["tasks"]
    assert sum(result["outcomes"].values()) == result["arrived"]


def test_a_result_that_cannot_be_written_is_1(tmp_path: Path) -> None:
    ended = subprocess.run(
        [*ARGV, "home", "--tasks=5", f"--json={tmp_path}/none/x.json"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert "cannot be written" in ended.stderr


def test_the_page_needs_nothing_from_anywhere_and_carries_its_plots() -> None:
    result = summarise(Watched(shipped("overload", tasks=600)).run(), scale=1)
    html = page(result)
    assert not re.search(r"https?:|//|src=|href=|url\(|@import|<script|<link|<iframe", html)
    assert html.count("<svg") == 8
    assert "prefers-color-scheme:dark" in html


def test_names_in_the_page_are_text_whatever_they_are() -> None:
    result = summarise(Watched(shipped("home", tasks=5)).run(), scale=1)
    marked = page(_renamed(result, "<b>&"))
    assert "<b>" not in marked
    assert "&lt;b&gt;&amp;" in marked


def _renamed(result: Any, about: str) -> Any:
    return type(result)(**{name: getattr(result, name) for name in result.__struct_fields__} | {"about": about})


def test_only_the_command_touches_the_outside() -> None:
    for module in PACKAGE.glob("*.py"):
        if module.name in AT_THE_EDGE:
            continue
        for node in ast.walk(ast.parse(module.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in names} & IMPURE, module.name


def test_orchctl_shows_a_table(orchctl: Orchctl) -> None:
    code, out, _ = orchctl("simulate", "team", "--tasks", "300")
    assert code == Exit.OK
    assert "300 tasks in" in out
    assert "tenant-20" in out


def test_orchctl_writes_the_very_bytes_of_the_simulator(orchctl: Orchctl, tmp_path: Path) -> None:
    kept, html = tmp_path / "kept.json", tmp_path / "page.html"
    code, _, _ = orchctl("simulate", "home", "--tasks=50", "--seed=3", "--json", str(kept), "--html", str(html))
    assert code == Exit.OK
    assert kept.read_bytes() == simulate("home", "--tasks=50", "--seed=3")
    assert html.read_text().startswith("<!doctype html>")
    code, out, _ = orchctl("simulate", "home", "--tasks=50", "--seed=3", "--json", "-")
    assert code == Exit.OK
    assert out.encode() == kept.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "there is no scenario 'nowhere'"),
        (["home", "--scale=0"], "a scale of 0"),
        (["home", "--tasks=0"], "at least one task"),
        (["home", "--trace=/nonexistent.csv"], "cannot be read"),
    ],
)
def test_wrong_arguments_are_2_and_say_what_to_do(orchctl: Orchctl, arguments: list[str], said: str) -> None:
    code, _, err = orchctl("simulate", *arguments)
    assert code == Exit.USAGE
    assert said in err
    assert "orchctl simulate --help" in err


def test_orchctl_names_the_bad_rows_of_a_trace(orchctl: Orchctl, tmp_path: Path) -> None:
    trace = tmp_path / "azure.csv"
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\nnever,1,2\n")
    code, _, err = orchctl("simulate", "home", "--trace", str(trace))
    assert code == Exit.USAGE
    assert "azure.csv:3: 'never' is not a date and time" in err


def test_orchctl_passes_ctrl_c_on_and_keeps_the_partial_result(tmp_path: Path) -> None:
    asked: list[simulation.SimulatorProgress] = []

    def told(line: simulation.SimulatorProgress) -> None:
        if not asked:
            os.kill(os.getpid(), signal.SIGINT)
        asked.append(line)

    before = signal.getsignal(signal.SIGINT)
    code, document = simulation.simulate(["fleet"], tmp_path / "result.json", told)
    assert code == Exit.INTERRUPTED
    assert simulation.read(document).partial
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_at_orchctl_is_130_with_the_partial_result() -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "llorch_ctl", "simulate", "fleet", "--json", "-"],
        env={**os.environ, "FORCE_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert child.stderr is not None
    shown = b""
    while b"tasks/s" not in shown:
        read = os.read(child.stderr.fileno(), 65_536)
        assert read, shown
        shown += read
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=30)
    assert child.returncode == Exit.INTERRUPTED, err
    assert json.loads(out)["partial"] is True


def test_stopped_before_it_began_an_older_result_is_not_taken_for_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, time\nos.kill(os.getppid(), signal.SIGINT)\ntime.sleep(60)\n"
    )
    older = tmp_path / "result.json"
    older.write_bytes(b"{}")
    code, document = simulation.simulate(["home"], older, lambda _: None)
    assert (code, document) == (Exit.INTERRUPTED, b"")


def test_a_simulator_that_breaks_is_a_problem_with_its_last_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.stderr.write('broken\\n')\nsys.exit(9)\n")
    with pytest.raises(Problem, match="broken"):
        simulation.simulate(["home"], tmp_path / "result.json", lambda _: None)


def test_the_help_of_orchctl_lists_every_scenario() -> None:
    listed = re.findall(r"^ {4}([a-z-]+): ", simulate_command.__doc__ or "", re.MULTILINE)
    assert listed == list(SCENARIOS)
