"""`python -m llorch_shared.with_parent [--parent=PID] PROGRAM ARG…`: become PROGRAM; die when the parent dies.

With `--parent` that holds from the very fork on; without it, from when this interpreter has started.
"""

import os
import sys

from llorch_shared.lifecycle import die_with_parent

if __name__ == "__main__":
    program = sys.argv[1:]
    parent = 0
    if program[0].startswith("--parent="):
        parent = int(program.pop(0).partition("=")[2])
    die_with_parent(parent=parent)
    os.execvp(program[0], program)  # noqa: S606  (argv of our own supervisor, no shell)
