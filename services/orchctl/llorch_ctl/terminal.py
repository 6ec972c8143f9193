"""What every command shares at the terminal: options, settings, JSON or text, an event loop that Ctrl-C ends.

Results go to standard output, everything said about them to standard error, so that output can be piped.
"""

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import msgspec
import typer
from rich.console import Console
from rich.text import Text

from llorch_ctl.core.assignments import assigned
from llorch_ctl.exits import Exit, Problem
from llorch_shared.settings import Settings, SettingsError
from llorch_shared.settings_loading import load

OUT: Final = Console(highlight=False, soft_wrap=True)
ERR: Final = Console(stderr=True, highlight=False, soft_wrap=True)

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", envvar="LLORCH_CONFIG", help="Config file (TOML).", show_envvar=True)
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="KEY=VALUE of a setting, as gateway.addr=127.0.0.1:9000; repeatable.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON to standard output.")]

T = TypeVar("T")


def settings_from(config: Path | None, assignments: Sequence[str] | None = None, **flags: Any) -> Settings:
    """File, environment and flags, merged; `assignments` are those of `--set`. A mistake in them is wrong usage."""
    try:
        return load(file=config, flags={**assigned(assignments or ()), **flags})
    except SettingsError as error:
        raise Problem(
            str(error), fix="see: orchctl config example, orchctl config show", exit_code=Exit.USAGE
        ) from error


def write_json(value: Any, *, lines: bool = False) -> None:
    """One JSON document; one line of it where several follow."""
    encoded = msgspec.json.encode(value, enc_hook=str)
    text = encoded if lines else msgspec.json.format(encoded, indent=2)
    sys.stdout.write(text.decode() + "\n")
    sys.stdout.flush()


def report(problem: Problem, *, as_json: bool) -> None:
    """Tell a Problem: what is wrong, then what to do."""
    if as_json:
        error = {"message": problem.message, "fix": problem.fix, "code": problem.code, "exit_code": problem.exit_code}
        write_json({"error": error})
        return
    code = f" [{problem.code}]" if problem.code else ""
    ERR.print(Text.assemble(("error: ", "bold red"), problem.message, (code, "bright_black")))
    if problem.fix:
        ERR.print(Text.assemble(("to do: ", "bold"), problem.fix))


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run `main` until it returns; Ctrl-C and SIGTERM cancel it and exit with 130."""

    async def guarded() -> T:
        task = asyncio.ensure_future(main())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, task.cancel)
        return await task

    try:
        return asyncio.run(guarded())
    except asyncio.CancelledError:
        raise typer.Exit(Exit.INTERRUPTED) from None
