"""A process's life, with real processes: it stops when asked, and dies when its parent does."""

import asyncio
import os
import select
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from llorch_shared.lifecycle import Stop, first_of
from support.processes import gone


async def test_a_wish_to_stop_wakes_the_waiter_and_keeps_its_first_reason() -> None:
    stop = Stop()
    assert not stop
    waiter = asyncio.ensure_future(stop.wait())
    stop.wish("SIGTERM")
    stop.wish("again")
    assert await asyncio.wait_for(waiter, 15)
    assert await stop.wait(0)
    assert (bool(stop), stop.reason) == (True, "SIGTERM")


async def test_waiting_for_a_wish_ends_at_its_timeout() -> None:
    assert not await Stop().wait(0.01)


async def test_the_first_to_end_ends_the_others() -> None:
    cancelled = asyncio.Event()

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    await asyncio.wait_for(first_of(forever(), asyncio.sleep(0)), 15)
    assert cancelled.is_set()


async def test_the_exception_of_the_first_to_end_is_raised() -> None:
    async def fail() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await asyncio.wait_for(first_of(asyncio.Event().wait(), fail()), 15)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_becomes_the_wish_to_stop_and_main_chooses_the_exit_code(number: signal.Signals) -> None:
    child = python(
        """
        from llorch_shared.lifecycle import Stop, run
        async def main(stop: Stop) -> int:
            print("up", flush=True)
            await stop.wait()
            print(stop.reason, flush=True)
            return 3
        raise SystemExit(run(main))
        """
    )
    assert line_of(child) == "up"
    child.send_signal(number)
    assert line_of(child) == number.name
    assert child.wait(30) == 3


def test_two_signals_are_one_wish() -> None:
    child = python(
        """
        import asyncio
        from llorch_shared.lifecycle import Stop, run
        async def main(stop: Stop) -> int:
            print("up", flush=True)
            await stop.wait()
            print("stopping", flush=True)
            await asyncio.get_running_loop().run_in_executor(None, input)
            return 0
        raise SystemExit(run(main))
        """
    )
    assert line_of(child) == "up"
    child.terminate()
    assert line_of(child) == "stopping"
    child.terminate()
    assert child.stdin is not None
    child.stdin.write(b"\n")
    child.stdin.flush()
    assert child.wait(30) == 0


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_dies_with_its_parent_however_that_dies(end: signal.Signals) -> None:
    parent = python(
        """
        import subprocess, sys, time
        child = subprocess.Popen(
            [sys.executable, "-m", "llorch_shared.with_parent", sys.executable, "-c",
             "import os, time; print(os.getpid(), flush=True); time.sleep(600)"])
        time.sleep(600)
        """
    )
    child = int(line_of(parent))
    os.kill(child, 0)
    os.kill(parent.pid, end)
    parent.wait(30)
    assert gone([child], 30)


def test_a_child_whose_parent_died_before_the_kernel_was_asked_ends_itself() -> None:
    orphan = python(
        """
        import os
        from llorch_shared.with_parent import die_with_parent
        parents = [os.getppid(), 1]
        os.getppid = lambda: parents.pop(0)
        die_with_parent()
        print("alive", flush=True)
        """
    )
    assert orphan.wait(30) == -signal.SIGKILL


def test_with_parent_becomes_the_program_with_its_arguments_and_its_exit_code() -> None:
    program = [sys.executable, "-c", "import sys; print(sys.argv[1:]); sys.exit(5)", "a b", "*"]
    ran = subprocess.run(
        [sys.executable, "-m", "llorch_shared.with_parent", *program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (5, "['a b', '*']\n")


def python(source: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(source)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def line_of(process: subprocess.Popen[bytes], deadline_s: float = 30) -> str:
    """The next line a process prints; fails at the deadline."""
    assert process.stdout is not None
    deadline = time.monotonic() + deadline_s
    line = b""
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([process.stdout], [], [], max(0, deadline - time.monotonic()))
        assert ready, f"nothing within {deadline_s} s after {line!r}"
        byte = os.read(process.stdout.fileno(), 1)
        assert byte, f"ended with {process.wait(30)} after {line!r}"
        line += byte
    return line.decode().strip()
