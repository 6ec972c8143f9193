"""`orchctl engine`: how many replicas a pool is to have, and how they are."""

import asyncio
import time
from typing import Annotated, Final

import msgspec
import typer

from llorch_ctl import bus_client, pools
from llorch_ctl.commands.status import plain_table, replica_row
from llorch_ctl.exits import Exit, Problem
from llorch_ctl.terminal import ERR, OUT, ConfigOption, JsonOption, run, settings_from, write_json
from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus, BusError
from llorch_shared.settings import Settings
from llorch_shared.wire.registry import REPLICA_DECODER, ReplicaRecord, ReplicaState
from llorch_shared.wire.spec import PoolSpec

POLL_S: Final = 0.2

app = typer.Typer(help="Replicas of a pool: start, stop, look.", no_args_is_help=True)

PoolArgument = Annotated[str, typer.Argument(metavar="POOL", help="Id of a pool.")]
WaitOption = Annotated[float, typer.Option("--wait", metavar="SECONDS", help="How long to wait for it; 0 does not.")]


@app.command("up")
def up(
    pool: PoolArgument,
    replicas: Annotated[int | None, typer.Option(min=1, max=64, help="Per node. Default: as in the config.")] = None,
    wait: WaitOption = 300,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have replicas of a pool run."""
    settings = settings_from(config)
    count = replicas or next((one.replicas for one in settings.pools if one.id == pool and one.replicas), 1)
    raise typer.Exit(run(lambda: _scale(settings, pool, count, wait, as_json=as_json)))


@app.command("down")
def down(pool: PoolArgument, wait: WaitOption = 60, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Drain and stop all replicas of a pool. Tasks that wait are kept until it is up again."""
    settings = settings_from(config)
    raise typer.Exit(run(lambda: _scale(settings, pool, 0, wait, as_json=as_json)))


@app.command("status")
def status(
    pool: Annotated[str | None, typer.Argument(metavar="[POOL]", help="Only this pool.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Replicas, their state and what they are busy with."""
    settings = settings_from(config)
    raise typer.Exit(run(lambda: _show(settings, pool, as_json=as_json)))


async def _show(settings: Settings, pool: str | None, *, as_json: bool) -> int:
    async with bus_client.connected(settings.nats) as bus:
        found = await _replicas(bus, pool)
    _print(found, as_json=as_json)
    return Exit.OK


async def _scale(settings: Settings, pool_id: str, count: int, wait_s: float, *, as_json: bool) -> int:
    def edit(present: PoolSpec | None) -> PoolSpec:
        if present is None:
            raise Problem(f"there is no pool {pool_id!r}", fix="orchctl status lists the pools", exit_code=Exit.USAGE)
        return msgspec.structs.replace(present, replicas=count)

    async with bus_client.connected(settings.nats) as bus:
        try:
            await pools.change(bus, pool_id, edit, command="engine up" if count else "engine down")
        except BusError as error:
            raise Problem(
                f"the pool cannot be changed: {error or type(error).__name__}",
                fix="try again; orchctl status shows more",
            ) from error
        if not as_json:
            ERR.print(f"pool {pool_id}: replicas wanted per node: {count}")
        found = await _settled(bus, pool_id, count, wait_s)
    _print(found, as_json=as_json)
    if wait_s and not _is_settled(found, count):
        raise Problem(f"pool {pool_id} is not there after {wait_s:g} s", fix=f"orchctl engine status {pool_id}")
    return Exit.OK


async def _settled(bus: Bus, pool_id: str, count: int, wait_s: float) -> list[ReplicaRecord]:
    deadline = time.monotonic() + wait_s
    while True:
        found = await _replicas(bus, pool_id)
        if _is_settled(found, count) or time.monotonic() >= deadline:
            return found
        await asyncio.sleep(POLL_S)


def _is_settled(found: list[ReplicaRecord], count: int) -> bool:
    if count == 0:
        return not found
    return len(found) >= count and all(replica.state is ReplicaState.READY for replica in found)


async def _replicas(bus: Bus, pool: str | None) -> list[ReplicaRecord]:
    messages = await bus.snapshot(streams.REG, subjects.registry("replica.>"))
    records = [REPLICA_DECODER.decode(message.data) for message in messages if not message.deleted]
    return sorted((r for r in records if pool in (None, r.pool_id)), key=lambda r: r.replica_id)


def _print(found: list[ReplicaRecord], *, as_json: bool) -> None:
    if as_json:
        write_json({"replicas": found})
        return
    table = plain_table("replica", "state", "device", "slots", "engine", "restarts", "")
    for replica in found:
        table.add_row(*replica_row(replica))
    OUT.print(table if found else "no replicas")
