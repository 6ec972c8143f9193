"""`orchctl bus`: one nats-server of somebody's own configuration, in the foreground, under the supervisor."""

import asyncio
import os
import signal
from functools import partial
from pathlib import Path
from typing import Annotated, Final

import typer

from llorch_ctl.core.store_watch import WatchPolicy
from llorch_ctl.embedded import ServerMissing, server_binary
from llorch_ctl.exits import Exit, Problem
from llorch_ctl.keeper import ProcessSpec
from llorch_ctl.logfiles import LogView
from llorch_ctl.store_guard import StoreGuard
from llorch_ctl.supervisor import Supervisor
from llorch_ctl.system import NATS
from llorch_ctl.terminal import OUT
from llorch_shared import lifecycle

READY_WITHIN_S: Final = 600.0
"""A server reads its streams before it serves."""
STOP_WITHIN_S: Final = 12.0


def bus(
    config: Annotated[Path, typer.Argument(help="Configuration of nats-server.", exists=True, dir_okay=False)],
    json_logs: Annotated[bool, typer.Option("--json-logs", help="Log lines unchanged, and own ones as JSON.")] = False,
) -> None:
    """Run one nats-server; SIGTERM or Ctrl-C stops it, SIGHUP has it read its configuration again.

    It is started again when it ends, and when it could not write and there is room again: a full disk needs nobody's
    hand but to free it. The configuration must leave the log on standard output (no log_file).
    """
    try:
        binary = server_binary()
    except ServerMissing as error:
        raise Problem(str(error), fix="pip install 'llama-orch[embedded]'") from error
    view = LogView(OUT, raw=json_logs)
    raise typer.Exit(lifecycle.run(partial(_run, (str(binary), "--config", str(config)), view)))


async def _run(argv: tuple[str, ...], view: LogView, stop: lifecycle.Stop) -> int:
    async with Supervisor(None, view) as supervisor:
        guard = StoreGuard(NATS, view.say, partial(supervisor.restart, NATS), WatchPolicy())

        async def ready(_: float) -> bool:
            return guard.is_ready

        supervisor.start(
            ProcessSpec(
                name=NATS,
                argv=argv,
                env=dict(os.environ),
                ready=ready,
                ready_within_s=READY_WITHIN_S,
                stop_within_s=STOP_WITHIN_S,
                listener=guard,
            )
        )
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, supervisor.reload, NATS)
        guarding = asyncio.create_task(guard.run(), name="guard of the store")
        await lifecycle.first_of(stop.wait(), supervisor.given_up.wait())
        guarding.cancel()
        if supervisor.given_up.is_set():
            raise supervisor.problem()
    return Exit.OK
