"""`python -m llorch_shared.with_parent PROGRAM ARG…`: become PROGRAM, and die when the starting process dies."""

import os
import sys

from llorch_shared.lifecycle import die_with_parent

if __name__ == "__main__":
    die_with_parent()
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606  (argv of our own supervisor, no shell)
