"""Child processes: read, bounded, never left behind; and what pip's environment may hold."""

import os
import sys
import time
from pathlib import Path

import anyio
import pytest

from llorch_provisioner.adapters import external, pip, process
from llorch_provisioner.core.failure import Failure
from llorch_shared.wire.task import Engine

FAMILY = (
    "import os, subprocess, sys, time;"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
    "print('family', os.getpid(), child.pid, flush=True); time.sleep(600)"
)


def gone(pid: int, deadline_s: float = 30) -> bool:
    """True once the process has ended (a zombie has)."""
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


async def test_lines_come_in_order_from_both_streams(tmp_path: Path) -> None:
    code = "import sys; print('a'); sys.stdout.flush(); sys.stderr.write('b\\rc\\n'); sys.exit(3)"
    seen: list[str] = []
    ended = await process.run(
        [sys.executable, "-c", code], env=os.environ, cwd=tmp_path, timeout_s=30, on_line=seen.append
    )
    assert (ended.code, seen, ended.lines) == (3, ["a", "b", "c"], ("a", "b", "c"))


async def test_a_flood_without_line_ends_stays_bounded(tmp_path: Path) -> None:
    code = "import sys; sys.stdout.write('x' * 2_000_000 + '\\nend')"
    ended = await process.run([sys.executable, "-c", code], env=os.environ, cwd=tmp_path, timeout_s=30)
    assert ended.lines[-1] == "end"
    assert sum(len(line) for line in ended.lines) <= 2 * process.LINE_BYTES_MAX


async def test_a_child_that_takes_too_long_is_killed_and_says_what_to_raise(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="did not end within") as failure:
        await process.run(["/bin/sleep", "600"], env=os.environ, cwd=tmp_path, timeout_s=0.3)
    assert "download_timeout_s" in failure.value.hint


async def test_a_cancelled_wait_kills_the_child_with_its_children(tmp_path: Path) -> None:
    seen: list[str] = []
    started = anyio.Event()

    def on_line(line: str) -> None:
        seen.append(line)
        started.set()

    async with anyio.create_task_group() as tasks:

        async def run() -> None:
            await process.run(
                [sys.executable, "-c", FAMILY], env=os.environ, cwd=tmp_path, timeout_s=60, on_line=on_line
            )

        tasks.start_soon(run)
        with anyio.fail_after(20):
            await started.wait()
        tasks.cancel_scope.cancel()
    assert all(gone(int(pid)) for pid in seen[0].split()[1:])


def test_pip_gets_the_machines_configuration_and_none_of_our_secrets(tmp_path: Path) -> None:
    base = {
        "PATH": "/bin",
        "PIP_INDEX_URL": "file:///index",
        "PIP_QUIET": "3",
        "https_proxy": "http://proxy",
        "AUTH_TOKEN": "s",
        "NATS_PASSWORD": "s",
        "LLORCH_API_TOKEN": "s",
        "AWS_SECRET_ACCESS_KEY": "s",
        "PYTHONPATH": "/elsewhere",
    }
    env = pip.child_environment(base, tmp_path, configured=True)
    assert "s" not in env.values()
    assert (env["PIP_INDEX_URL"], env["https_proxy"], env["TMPDIR"]) == ("file:///index", "http://proxy", str(tmp_path))
    assert not {"PIP_QUIET", "PYTHONPATH"} & env.keys()
    offline = pip.child_environment(base, tmp_path, configured=False)
    assert "PIP_INDEX_URL" not in offline
    assert offline["PIP_CONFIG_FILE"] == os.devnull


def program(folder: Path, text: str) -> Path:
    path = folder / "llama-server"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


async def test_an_external_engine_is_found_on_path_and_says_its_version(tmp_path: Path) -> None:
    path = program(tmp_path, 'echo "load_backend: noise" >&2; echo "version: 0.5.0-dev (build 1, commit 0c1e570)"')
    base = {"PATH": f"{tmp_path}:/bin:/usr/bin"}
    found = external.find(Engine.LLAMACPP, "llama-server", base)
    assert found == path
    version = await external.version(Engine.LLAMACPP, (str(found),), base, {})
    assert version == "llama-server 0.5.0-dev (build 1, commit 0c1e570)"


def test_a_missing_external_engine_is_told_with_how_to_get_it(tmp_path: Path) -> None:
    for command in ("llama-server", str(tmp_path / "llama-server")):
        with pytest.raises(Failure, match="is not on this node") as failure:
            external.find(Engine.LLAMACPP, command, {"PATH": str(tmp_path)})
        assert "allow_package_installs" in failure.value.hint


async def test_an_external_engine_that_breaks_is_told_with_its_words(tmp_path: Path) -> None:
    path = program(tmp_path, 'echo "libcuda.so.1: cannot open" >&2; exit 127')
    with pytest.raises(Failure, match=r"code 127: libcuda\.so\.1"):
        await external.version(Engine.LLAMACPP, (str(path),), {"PATH": "/bin"}, {})
