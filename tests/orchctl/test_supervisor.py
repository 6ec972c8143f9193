"""Real small processes under the supervisor."""

import asyncio
import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from llorch_ctl.core.supervision import Phase, RestartPolicy
from llorch_ctl.exits import Problem
from llorch_ctl.keeper import Probe, ProcessSpec
from llorch_ctl.logfiles import LogView
from llorch_ctl.supervisor import Supervisor

FAST = RestartPolicy(initial_s=0.01, max_s=0.05, starts_max=2)
WAITS = "import time; print('now ready', flush=True); time.sleep(60)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('now ready', flush=True); time.sleep(60)"
)


def log_says(path: Path, text: str) -> Probe:
    async def says(_: float) -> bool:
        return path.exists() and text in path.read_text()

    return says


def spec(folder: Path, name: str, code: str, **changes: object) -> ProcessSpec:
    fields: dict[str, object] = {
        "name": name,
        "argv": (sys.executable, "-u", "-c", code),
        "env": dict(os.environ),
        "ready": log_says(folder / f"{name}.log", "now ready"),
        "restart": FAST,
        "stop_within_s": 30.0,
    }
    return ProcessSpec(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture
async def supervisor(tmp_path: Path) -> AsyncIterator[Supervisor]:
    async with Supervisor(tmp_path, LogView(Console(file=io.StringIO()))) as running:
        yield running


async def until(question: Callable[[], bool], deadline_s: float = 30) -> None:
    async with asyncio.timeout(deadline_s):
        while not question():
            await asyncio.sleep(0.01)


async def test_a_process_that_ends_is_started_again(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.start(spec(tmp_path, "a", WAITS))
    await supervisor.ready(["a"])
    _, first, _ = supervisor.lives()["a"]
    os.kill(first, signal.SIGKILL)
    await until(lambda: supervisor.lives()["a"][2] == 1 and supervisor.lives()["a"][0] is Phase.READY)
    assert supervisor.lives()["a"][1] not in (0, first)


class Ears:
    def __init__(self) -> None:
        self.heard_of_each: list[list[bytes]] = []

    def begun(self) -> None:
        self.heard_of_each.append([])

    def heard(self, line: bytes) -> None:
        self.heard_of_each[-1].append(line)


async def test_a_process_is_restarted_on_request_and_a_listener_knows_which_start_says_what(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    ears = Ears()
    supervisor.start(spec(tmp_path, "a", WAITS, listener=ears, restart=RestartPolicy(initial_s=60, spread=0)))
    await supervisor.ready(["a"])
    _, first, _ = supervisor.lives()["a"]
    await supervisor.restart("a")
    assert not psutil.pid_exists(first)
    await until(lambda: ears.heard_of_each == [[b"now ready"], [b"now ready"]], 30)
    assert supervisor.lives()["a"][2] == 1


async def test_a_restart_kills_who_does_not_end(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.start(spec(tmp_path, "a", STUBBORN, stop_within_s=0.2))
    await supervisor.ready(["a"])
    _, first, _ = supervisor.lives()["a"]
    await supervisor.restart("a")
    assert not psutil.pid_exists(first)
    await until(lambda: supervisor.lives()["a"][1] not in (0, first), 30)


async def test_a_process_that_cannot_start_is_given_up_with_what_it_said(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    supervisor.start(spec(tmp_path, "a", "raise SystemExit('port 1 is not for you')"))
    with pytest.raises(Problem, match="a does not start: exit code 1") as problem:
        await supervisor.ready(["a"])
    assert "port 1 is not for you" in problem.value.message
    assert str(tmp_path / "a.log") in problem.value.fix


async def test_a_program_that_does_not_exist_is_given_up(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.start(spec(tmp_path, "a", "", argv=("/nonexistent/program",)))
    with pytest.raises(Problem, match="a does not start"):
        await supervisor.ready(["a"])


async def test_a_process_that_is_never_ready_is_ended_and_given_up(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.start(spec(tmp_path, "a", "import time; time.sleep(60)", ready_within_s=0.3))
    with pytest.raises(Problem, match="not ready within"):
        await supervisor.ready(["a"])


async def test_processes_end_newest_first(supervisor: Supervisor, tmp_path: Path) -> None:
    ends = tmp_path / "ends"
    code = (
        "import signal, sys, time\n"
        "def end(*_):\n"
        "    with open({ends!r}, 'a') as file: print({name!r}, file=file)\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "print('now ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    for name in ("a", "b", "c"):
        supervisor.start(spec(tmp_path, name, code.format(ends=str(ends), name=name)))
    await supervisor.ready(["a", "b", "c"])
    assert await supervisor.stop() == []
    assert ends.read_text().split() == ["c", "b", "a"]


async def test_a_process_that_does_not_end_is_killed_and_named(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.start(spec(tmp_path, "a", STUBBORN, stop_within_s=0.2))
    await supervisor.ready(["a"])
    _, pid, _ = supervisor.lives()["a"]
    assert await supervisor.stop() == ["a"]
    assert not psutil.pid_exists(pid)


async def test_a_grandchild_that_stays_is_killed_and_named(supervisor: Supervisor, tmp_path: Path) -> None:
    grandchild = f"subprocess.Popen([sys.executable, '-c', {STUBBORN!r}], start_new_session=True)"
    code = f"import subprocess, sys; {grandchild}; {WAITS}"
    supervisor.start(spec(tmp_path, "a", code))
    await supervisor.ready(["a"])
    await until(lambda: len(psutil.Process().children(recursive=True)) >= 2)
    killed = await supervisor.stop()
    assert len(killed) == 1
    assert psutil.Process().children(recursive=True) == []


async def test_stopping_while_a_restart_is_due_does_not_start_it(supervisor: Supervisor, tmp_path: Path) -> None:
    slow = RestartPolicy(initial_s=60, spread=0)
    supervisor.start(spec(tmp_path, "a", WAITS, restart=slow))
    await supervisor.ready(["a"])
    os.kill(supervisor.lives()["a"][1], signal.SIGKILL)
    await until(lambda: supervisor.lives()["a"][0] is Phase.BACKOFF)
    async with asyncio.timeout(30):
        await supervisor.stop()


SUPERVISE = """
import asyncio, io, os, sys
from pathlib import Path
from rich.console import Console
from llorch_ctl.logfiles import LogView
from llorch_ctl.keeper import ProcessSpec
from llorch_ctl.supervisor import Supervisor

async def now(_):
    return True

async def main():
    async with Supervisor(Path(sys.argv[1]), LogView(Console(file=io.StringIO()))) as supervisor:
        for name in ("a", "b"):
            argv = (sys.executable, "-c", "import time; time.sleep(60)")
            supervisor.start(ProcessSpec(name=name, argv=argv, env=dict(os.environ), ready=now))
        await supervisor.ready(["a", "b"])
        await asyncio.sleep(60)

asyncio.run(main())
"""


def test_kill_9_of_the_supervisor_leaves_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", SUPERVISE, str(tmp_path)])
    try:
        family: list[psutil.Process] = []
        deadline = time.monotonic() + 60
        while len(family) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
            with contextlib.suppress(psutil.Error):
                family = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        process.wait()
    gone, alive = psutil.wait_procs(family, timeout=30)
    assert not alive
    assert len(gone) == 2
