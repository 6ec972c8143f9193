"""`orchctl up`: the whole system in the foreground."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from llorch_ctl.config_file import embedded_pool
from llorch_ctl.exits import Exit, Problem
from llorch_ctl.gpu_engine import gpu_engine_command
from llorch_ctl.logfiles import LogView
from llorch_ctl.running import run_system
from llorch_ctl.system import System, require_gpu, require_ports
from llorch_ctl.terminal import OUT, ConfigOption, JsonOption, SetOption, settings_from
from llorch_shared.logs import redact
from llorch_shared.settings import Settings
from llorch_shared.wire.spec import PoolSpec


def up(
    config: ConfigOption = None,
    profile: Annotated[
        str | None, typer.Option(help="`gpu`, or `ci` for engines on the CPU, marked as such everywhere.")
    ] = None,
    state_dir: Annotated[
        Path | None, typer.Option(help="Queue store, caches, logs. Default: ~/.local/state/llama-orch")
    ] = None,
    *,
    assignments: SetOption = None,
    json_logs: Annotated[bool, typer.Option("--json-logs", help="Log lines as JSON, unchanged.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Start everything and stay; Ctrl-C stops it in order, a second one kills.

    Starts nats-server (when nats.url is a loopback address), provisioner, scheduler, gateway and poold, each its own
    process, and starts again what ends. Logs: STATE_DIR/logs.
    """
    settings = settings_from(config, assignments, profile=profile, state_dir=str(state_dir) if state_dir else None)
    require_gpu(settings)
    settings = msgspec.structs.replace(settings, pools=settings.pools or (_default_pool(settings),))
    require_ports(settings)
    view = LogView(OUT, raw=json_logs or as_json)
    code = run_system(settings, view, lambda system: _stay(system, view), say=view.say, interrupted=Exit.OK)
    raise typer.Exit(code)


def _default_pool(settings: Settings) -> PoolSpec:
    if settings.profile == "ci":
        return embedded_pool("default")
    if command := gpu_engine_command():
        return embedded_pool("default", command=command)
    raise Problem(
        "no pool is configured, and no llama-server is on PATH that a default one could use on the GPU",
        fix="orchctl config example > llorch.toml, edit its [[pools]], then: orchctl up --config llorch.toml",
    )


async def _stay(system: System, view: LogView) -> int:
    pools = ", ".join(f"{pool.id} ({pool.engine}, {pool.model})" for pool in system.settings.pools)
    view.say(f"up: HTTP {system.gateway_url} · bus {redact(system.settings.nats.url)} · logs {system.folder.logs}")
    view.say(f"pools: {pools}; see them get ready with: orchctl status --watch")
    await system.supervisor.given_up.wait()
    raise system.supervisor.problem()
