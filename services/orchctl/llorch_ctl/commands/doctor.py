"""`orchctl doctor`: what this machine has and lacks for llama-orch, and the command that mends each lack."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from llorch_ctl import checks
from llorch_ctl.checks import Check, Verdict
from llorch_ctl.exits import Exit
from llorch_ctl.terminal import OUT, ConfigOption, JsonOption, write_json

_MARKS = {Verdict.OK: ("ok  ", "green"), Verdict.NOTE: ("note", "yellow"), Verdict.LACK: ("lack", "bold red")}


def doctor(
    config: ConfigOption = None,
    state_dir: Annotated[Path | None, typer.Option(help="As for `up`.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check Python, disk, ports, GPU, nats-server, package index and config. Exit code 1 when something is lacking.

    A note is something that `orchctl up` needs only for some uses.
    """
    found = checks.all_checks(config, state_dir)
    lacking = any(check.verdict is Verdict.LACK for check in found)
    if as_json:
        write_json({"healthy": not lacking, "checks": found})
    else:
        for check in found:
            _print(check)
    raise typer.Exit(Exit.FAILED if lacking else Exit.OK)


def _print(check: Check) -> None:
    OUT.print(Text.assemble(_MARKS[check.verdict], f"  {check.name:<15}", check.found))
    if check.fix:
        OUT.print(Text.assemble(" " * 21, ("fix: ", "bold"), check.fix))
