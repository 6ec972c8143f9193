"""A process that dies when the one that started it dies, however that dies.

`python -m llorch_shared.with_parent [--parent=PID] PROGRAM ARG…` becomes PROGRAM; with `--parent` it dies from the
very fork on, without it from when this interpreter has started. It runs before each engine and each supervised process,
so it imports next to nothing.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def die_with_parent(sent: signal.Signals = signal.SIGKILL, *, parent: int = 0) -> None:
    """Ask the kernel to signal this process when its parent dies, however it dies. Survives exec. With the pid of
    `parent` known, a parent that died before this call is noticed, too."""
    parent = parent or os.getppid()
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(sent), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os.kill(os.getpid(), sent)


def with_parent(argv: Sequence[str]) -> tuple[str, ...]:
    """The command line that runs `argv` and is killed when this process dies, from the very fork on."""
    return (sys.executable, "-P", "-m", "llorch_shared.with_parent", f"--parent={os.getpid()}", *argv)


def main() -> None:
    program = sys.argv[1:]
    parent = 0
    if program[0].startswith("--parent="):
        parent = int(program.pop(0).partition("=")[2])
    die_with_parent(parent=parent)
    os.execvp(program[0], program)  # noqa: S606  (argv of our own supervisor, no shell)


if __name__ == "__main__":
    main()
