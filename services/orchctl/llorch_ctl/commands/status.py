"""`orchctl status`: everything on one screen."""

import asyncio
from typing import Annotated, Final

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from llorch_ctl import bus_client, snapshot
from llorch_ctl.exits import Exit, Problem
from llorch_ctl.gateway_client import gateway_url
from llorch_ctl.snapshot import SystemStatus
from llorch_ctl.terminal import OUT, ConfigOption, JsonOption, run, settings_from, write_json
from llorch_shared.bus.port import Bus, BusError
from llorch_shared.logs import redact
from llorch_shared.settings import Settings
from llorch_shared.wire.registry import ReplicaRecord, ReplicaState

WATCH_EVERY_S: Final = 1.0
_STATE_COLOURS: Final = {
    ReplicaState.READY: "green",
    ReplicaState.FAILED: "bold red",
    ReplicaState.BACKOFF: "red",
}


def status(
    config: ConfigOption = None,
    as_json: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Repeat every second until Ctrl-C.")] = False,
) -> None:
    """Services, nodes, GPUs, pools, replicas and queues on one screen. Exit code 1 when something does not serve."""
    settings = settings_from(config)
    raise typer.Exit(run(lambda: _status(settings, as_json=as_json, watch=watch)))


async def _status(settings: Settings, *, as_json: bool, watch: bool) -> int:
    async with bus_client.connected(settings.nats) as bus:
        if watch and not as_json:
            return await _watch(bus, settings)
        while True:
            taken = await _take(bus, settings)
            if as_json:
                write_json(taken, lines=watch)
            else:
                OUT.print(screen(taken))
            if not watch:
                return Exit.OK if taken.healthy else Exit.FAILED
            await asyncio.sleep(WATCH_EVERY_S)


async def _watch(bus: Bus, settings: Settings) -> int:
    with Live(console=OUT, auto_refresh=False, screen=OUT.is_terminal) as live:
        while True:
            live.update(screen(await _take(bus, settings)), refresh=True)
            await asyncio.sleep(WATCH_EVERY_S)


async def _take(bus: Bus, settings: Settings) -> SystemStatus:
    try:
        return await snapshot.take(bus, nats_url=settings.nats.url, gateway_url=gateway_url(settings))
    except BusError as error:
        raise Problem(
            f"the bus at {redact(settings.nats.url)} answers, but holds no llama-orch: {error or type(error).__name__}",
            fix="start the system: orchctl up",
            exit_code=Exit.UNREACHABLE,
        ) from error


def screen(status: SystemStatus) -> Group:
    services = plain_table("service", "", "where", "")
    for service in status.services:
        mark = Text("ok", "green") if service.ok else Text("down", "bold red")
        services.add_row(service.name, mark, service.where, service.detail)
    gpus = plain_table("GPU", "node", "memory MB", "used", "")
    for node in status.nodes:
        for gpu in node.gpus:
            used = gpu.vram_total_mb - gpu.vram_free_mb
            gpus.add_row(
                gpu.name, node.node_id, f"{used} of {gpu.vram_total_mb}", f"{gpu.utilization_percent} %", gpu.fault
            )
        if not node.gpus:
            gpus.add_row("none", node.node_id, "", "", node.gpu_problem)
    pools = plain_table("pool", "engine", "model", "ready", "running", "queued")
    for pool in status.pools:
        queued = " ".join(f"{name} {depth}/{pool.capacity}" for name, depth in pool.queued.items())
        ready = Text(f"{pool.replicas_ready}/{pool.replicas_wanted}", "green" if pool.replicas_ready else "red")
        pools.add_row(
            pool.pool_id, pool.engine, _short(pool.model_ref), ready, f"{pool.running}/{pool.slots_total}", queued
        )
    replicas = plain_table("replica", "state", "device", "slots", "engine", "restarts", "")
    for replica in status.replicas:
        replicas.add_row(*replica_row(replica))
    return Group(services, Text(), gpus, Text(), pools, Text(), replicas)


def replica_row(replica: ReplicaRecord) -> tuple[str | Text, ...]:
    return (
        replica.replica_id,
        Text(replica.state, _STATE_COLOURS.get(replica.state, "yellow")),
        replica.device,
        f"{len(replica.active)}/{replica.slots_total}",
        f"{replica.engine} {replica.engine_version}".strip(),
        str(replica.restart_count),
        replica.last_error or replica.progress,
    )


def plain_table(*columns: str) -> Table:
    table = Table(*columns, box=None, pad_edge=False, header_style="bright_black")
    for column in table.columns:
        column.overflow = "fold"
    return table


def _short(model_ref: str) -> str:
    """The file of a long reference."""
    return model_ref.rpartition("/")[2] or model_ref
