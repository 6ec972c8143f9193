"""Exit codes of orchctl: a script can tell what happened without reading text. Shown in `orchctl --help` and README."""

from enum import IntEnum
from typing import Final


class Exit(IntEnum):
    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    REFUSED = 4
    TASK_FAILED = 5
    INTERRUPTED = 130


MEANINGS: Final[dict[Exit, str]] = {
    Exit.OK: "done",
    Exit.FAILED: "it did not work; the message says why and what to do",
    Exit.USAGE: "wrong arguments or a wrong config file",
    Exit.UNREACHABLE: "nobody answers at the gateway's or the bus's address",
    Exit.REFUSED: "refused for now (queue full, pool not ready): try again after the time that is told",
    Exit.TASK_FAILED: "the task was accepted and ended without success",
    Exit.INTERRUPTED: "stopped by Ctrl-C or SIGTERM",
}


class Problem(Exception):
    """Something the person at the terminal is told: what is wrong, and what to do about it."""

    def __init__(self, message: str, *, fix: str = "", exit_code: Exit = Exit.FAILED, code: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.exit_code = exit_code
        self.code = code
        """Requirement or error code, for machines."""
