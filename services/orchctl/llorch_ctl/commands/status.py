"""`orchctl status`: everything on one screen."""

import asyncio
from typing import Annotated, Final

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from llorch_ctl import bus_client, snapshot
from llorch_ctl.core.queues import ClassStatus
from llorch_ctl.exits import Exit
from llorch_ctl.gateway_client import gateway_url, trust
from llorch_ctl.snapshot import PoolStatus, SystemStatus
from llorch_ctl.terminal import OUT, ConfigOption, JsonOption, run, settings_from, write_json
from llorch_shared.bus.port import Bus
from llorch_shared.settings import Settings
from llorch_shared.wire.registry import ReplicaRecord, ReplicaState

WATCH_EVERY_S: Final = 1.0
TENANTS_SHOWN_MAX: Final = 10
"""Of one class; --json has all that are told."""
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
    """Services, nodes, GPUs, pools, replicas and queues on one screen. Exit code 1 when something does not serve.

    Of each queue: tasks waiting, share of the pool's slot time by weight (percent), what a tenant gets of it as
    measured (percent), and in how many seconds a new task would start. --json: shares as parts of 1, times in ms.
    """
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
    return await snapshot.take(bus, nats_url=settings.nats.url, gateway_url=gateway_url(settings), tls=trust(settings))


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
        if pool.drained:
            ready = Text("drained", "yellow")
        pools.add_row(
            pool.pool_id, pool.engine, _short(pool.model_ref), ready, f"{pool.running}/{pool.slots_total}", queued
        )
    queues = queue_table(status)
    replicas = plain_table("replica", "state", "device", "slots", "engine", "restarts", "")
    for replica in status.replicas:
        replicas.add_row(*replica_row(replica))
    return Group(services, Text(), gpus, Text(), pools, Text(), *queues, replicas)


def queue_table(status: SystemStatus) -> list[RenderableType]:
    """Who waits in which class, their part of the slot time by weight and as measured, and what a newcomer is told."""
    table = plain_table("queue", "tenant", "waiting", "share", "gets", "new task starts in", "")
    for pool in status.pools:
        for line in pool.classes:
            table.add_row(
                f"{pool.pool_id} {line.priority}",
                "",
                f"{line.waiting}/{line.capacity}",
                _percent(line.share),
                "",
                _seconds(line.predicted_wait_ms),
                _state_of(pool, line),
            )
            for flow in line.tenants[:TENANTS_SHOWN_MAX]:
                table.add_row(
                    "",
                    flow.tenant,
                    str(flow.waiting),
                    _percent(flow.share),
                    _percent(flow.gets),
                    _seconds(flow.predicted_wait_ms),
                    Text("held back by its quota", "yellow") if flow.throttled else "",
                )
            rest = line.waiting - sum(flow.waiting for flow in line.tenants[:TENANTS_SHOWN_MAX])
            if rest > 0 and line.tenants:
                table.add_row("", "others", str(rest), "", "", "", "")
    return [table, Text()] if table.row_count else []


def _state_of(pool: PoolStatus, line: ClassStatus) -> Text:
    if line.shed:
        return Text(f"refused for {_seconds(line.shed_for_ms)}: {line.shed}", "bold red")
    if pool.loading_ms:
        return Text(f"the model is loading, {_seconds(pool.loading_ms)} left", "yellow")
    return Text("places are promised to clients that were sent away" if line.promised else "", "yellow")


def _percent(part: float | None) -> str:
    return "" if part is None else f"{100 * part:.0f} %"


def _seconds(duration_ms: int) -> str:
    return f"{duration_ms / 1000:.1f} s"


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
