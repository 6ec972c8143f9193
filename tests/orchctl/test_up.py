"""`orchctl up` with a mock engine: everything comes up, serves, survives, and leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from llorch_ctl.exits import Exit
from support.nats_server import free_port

pytestmark = [pytest.mark.system, pytest.mark.nats, pytest.mark.timeout(240)]

CONFIG = """
profile = "ci"
state_dir = "{state}"
nats.url = "nats://127.0.0.1:{bus}"
gateway.addr = "127.0.0.1:{http}"
gateway.workers = 2
[[pools]]
id = "mock"
engine = "mock"
model = "mock:words"
devices = "cpu"
slots = 2
provisioning.env.LLORCH_MOCK_RATE = "50"
"""


class Up:
    """A running `orchctl up`, and the client commands that talk to it."""

    def __init__(self, folder: Path) -> None:
        self.config = folder / "llorch.toml"
        self.config.write_text(CONFIG.format(state=folder / "state", bus=free_port(), http=free_port()))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "llorch_ctl", "up", "--json-logs"],
            env=self._environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.said = ""
        for line in self.process.stdout:
            self.said += line
            if "up: HTTP" in line:
                break
        assert "up: HTTP" in self.said, self.said

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "LLORCH_CONFIG": str(self.config)}

    def orchctl(self, *arguments: str, rc: int = 0) -> str:
        command = [sys.executable, "-m", "llorch_ctl", *arguments]
        said = subprocess.run(command, env=self._environment(), capture_output=True, text=True, timeout=60, check=False)
        assert said.returncode == rc, said.stdout + said.stderr
        return said.stdout

    def until_healthy(self, deadline_s: float = 60) -> None:
        deadline = time.monotonic() + deadline_s
        while True:
            command = [sys.executable, "-m", "llorch_ctl", "status", "--json"]
            if subprocess.run(command, env=self._environment(), stdout=subprocess.DEVNULL, check=False).returncode == 0:
                return
            assert time.monotonic() < deadline, self.orchctl("status", rc=1)

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    running = Up(tmp_path)
    yield running
    if running.process.poll() is None:
        running.process.kill()
    running.process.communicate()


def test_up_serves_and_ctrl_c_leaves_nothing(up: Up) -> None:
    up.until_healthy()
    lines = up.orchctl("task", "submit", "hello", "--stream", "--json", "-n", "5").splitlines()
    events = [json.loads(line) for line in lines[1:]]
    assert [event["data"]["i"] for event in events if event["event"] == "token"] == [0, 1, 2, 3, 4]
    assert events[-1]["event"] == "end"
    task = json.loads(lines[0])["task_id"]
    assert json.loads(up.orchctl("task", "show", task, "--json"))["state"] == "done"
    assert json.loads(up.orchctl("task", "cancel", task, "--json"))["receipt"] is True
    assert (
        up.orchctl("task", "stream", task).strip()
        == "".join(event["data"]["t"] for event in events if event["event"] == "token").strip()
    )
    up.orchctl("task", "submit", "hello", "--model", "other", rc=Exit.USAGE)
    family = up.family()
    assert len(family) >= 7
    assert sum("llorch_gateway" in process.cmdline() for process in family) == 2
    up.process.send_signal(signal.SIGINT)
    out, _ = up.process.communicate(timeout=60)
    assert up.process.returncode == Exit.OK
    assert "no process is left" in out
    assert not psutil.wait_procs(family, timeout=0)[1]


def test_a_killed_service_comes_back_and_kill_9_of_up_leaves_nothing(up: Up) -> None:
    scheduler = next(child for child in up.family() if "llorch_scheduler" in child.cmdline())
    scheduler.kill()
    assert up.process.stdout is not None
    for line in up.process.stdout:
        if "scheduler is ready" in line:
            break
    up.until_healthy()
    family = up.family()
    up.process.kill()
    assert not psutil.wait_procs(family, timeout=30)[1]
