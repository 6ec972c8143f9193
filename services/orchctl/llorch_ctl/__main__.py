"""`orchctl`: the commands, and the one place where a Problem becomes a message and an exit code."""

import sys

from llorch_ctl.cli import app
from llorch_ctl.exits import Exit, Problem
from llorch_ctl.terminal import report
from llorch_shared import logs
from llorch_shared.bus.port import BusError


def main() -> None:
    logs.configure("orchctl", level="error", style="pretty")
    try:
        app()
    except Problem as problem:
        report(problem, as_json="--json" in sys.argv)
        sys.exit(problem.exit_code)
    except BusError as error:
        said = f"the bus does not do what was asked: {type(error).__name__} {error}"
        report(Problem(said.strip()), as_json="--json" in sys.argv)
        sys.exit(Exit.FAILED)


if __name__ == "__main__":
    main()
