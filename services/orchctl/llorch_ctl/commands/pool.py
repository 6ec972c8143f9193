"""`orchctl pool`: the scheduling policy of a pool, looked at and changed while it serves."""

import tomllib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer
from rich.text import Text

from llorch_ctl import bus_client, pools
from llorch_ctl.commands.status import plain_table
from llorch_ctl.exits import Exit, Problem
from llorch_ctl.terminal import ERR, OUT, ConfigOption, JsonOption, run, settings_from, write_json
from llorch_shared.bus.port import Bus, WrongSequence
from llorch_shared.desired import orders
from llorch_shared.desired.entries import Entry
from llorch_shared.desired.orders import Underway
from llorch_shared.desired.pools import Changed, NoEarlier, NotThere
from llorch_shared.identifiers import is_name
from llorch_shared.pool_keys import BadAssignment, Row, assigned, rows
from llorch_shared.settings import Settings
from llorch_shared.wire.spec import PoolSpec

_LIST: Final = "orchctl status lists the pools"
_KEYS: Final = "orchctl pool show POOL --all lists the keys with what is in effect"

app = typer.Typer(
    help="The policy of a pool: queues, shares, quotas, deadlines, preemption, waiting. A change is in effect at once. "
    "Units are part of the keys: _ms milliseconds, _mb MiB, _rps per second, _per_min per minute; weights, shares and "
    "probabilities are plain numbers. `orchctl up` and `config apply` write the config's pools again.",
    no_args_is_help=True,
)


def _pool_id(text: str) -> str:
    if not is_name(text):
        raise typer.BadParameter(f"{text!r} is not the id of a pool")
    return text


PoolArgument = Annotated[str, typer.Argument(metavar="POOL", help="Id of a pool.", parser=_pool_id)]


class _File(msgspec.Struct, frozen=True):
    pools: tuple[PoolSpec, ...] = ()


@app.command("list")
def list_(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """The pools that are wanted, by id; `orchctl status` shows what has become of them."""
    settings = settings_from(config)

    async def main(bus: Bus) -> int:
        found = await pools.stored(bus)
        if as_json:
            write_json({"pools": sorted(found)})
            return Exit.OK
        table = plain_table("pool", "engine", "model", "replicas", "slots", "ctx")
        for _, pool in sorted(found.items()):
            numbers = (str(pool.replicas), str(pool.slots), str(pool.ctx))
            table.add_row(pool.id, pool.engine.value, Text(pool.model), *numbers)
        OUT.print(table)
        return Exit.OK

    raise typer.Exit(_on_bus(settings, main))


@app.command("show")
def show(
    pool: PoolArgument,
    everything: Annotated[bool, typer.Option("--all", help="Every key, with the default where none was set.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """What is in effect: the keys that were set, or all of them."""
    settings = settings_from(config)

    async def main(bus: Bus) -> int:
        found = await pools.revision(bus, pool)
        if found.value is None:
            raise _no_pool(pool)
        _print_pool(found, rows(found.value, with_defaults=everything), as_json=as_json)
        return Exit.OK

    raise typer.Exit(_on_bus(settings, main))


@app.command("set")
def set_(
    pool: PoolArgument,
    assignments: Annotated[
        list[str],
        typer.Argument(metavar="KEY=VALUE...", help="All of them at once, or none. null goes back to the default."),
    ],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change keys of a pool, for example:

    orchctl pool set chat queue.capacity=64 deadlines.min_on_time_probability=0.7

    orchctl pool set chat admission.fairness.tenants.team-a.weight=5 admission.priorities.batch.weight=2

    orchctl pool set chat breaker.start_ms=2000
    """
    settings = settings_from(config)

    def edit(present: PoolSpec | None) -> PoolSpec:
        if present is None:
            raise _no_pool(pool)
        try:
            return assigned(present, assignments)
        except BadAssignment as error:
            raise Problem(str(error), fix=_KEYS, exit_code=Exit.USAGE) from error

    async def main(bus: Bus) -> int:
        return _print_changed([await pools.change(bus, pool, edit, command="pool set")], as_json=as_json)

    raise typer.Exit(_on_bus(settings, main))


@app.command("apply")
def apply(
    file: Annotated[Path, typer.Argument(metavar="FILE", help=r"TOML with [\[pools]] as in the config file.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the pools of FILE exactly what it says, and leave all others as they are."""
    settings = settings_from(config)
    wanted = _read(file)

    async def main(bus: Bus) -> int:
        return _print_changed([await pools.put(bus, pool, command="pool apply") for pool in wanted], as_json=as_json)

    raise typer.Exit(_on_bus(settings, main))


@app.command("rollback")
def rollback(pool: PoolArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Go back to the version before the present one. The same again goes forward."""
    settings = settings_from(config)

    async def main(bus: Bus) -> int:
        try:
            changed = await pools.rollback(bus, pool)
        except NoEarlier as error:
            if (await pools.revision(bus, pool)).seq == 0:
                raise _no_pool(pool) from error
            raise Problem(f"the bus keeps no other version of pool {pool}", fix=f"orchctl pool set {pool} …") from error
        return _print_changed([changed], as_json=as_json)

    raise typer.Exit(_on_bus(settings, main))


@app.command("remove")
def remove(pool: PoolArgument, config: ConfigOption = None) -> None:
    """Want the pool no more. Tasks that wait in its queue stay there until it returns, or their time is up."""
    settings = settings_from(config)

    async def main(bus: Bus) -> int:
        if (await pools.revision(bus, pool)).value is None:
            raise _no_pool(pool)
        await pools.remove(bus, pool)
        OUT.print(f"pool {pool} is removed", markup=False)
        return Exit.OK

    raise typer.Exit(_on_bus(settings, main))


@app.command("drain")
def drain(
    pool: PoolArgument,
    deadline_ms: Annotated[int, typer.Option(help="How long running tasks may take to end.", min=0, max=86_400_000)],
    config: ConfigOption = None,
) -> None:
    """Take the pool out of service until `orchctl pool undrain`; what still runs at the deadline waits in its queue."""
    settings = settings_from(config)

    async def main(bus: Bus) -> int:
        await orders.drain(bus, pool, pools.author(bus), deadline_ms=deadline_ms)
        OUT.print(f"pool {pool} drains; running tasks may end within {deadline_ms} ms", markup=False)
        return Exit.OK

    raise typer.Exit(_on_bus(settings, main))


@app.command("undrain")
def undrain(pool: PoolArgument, config: ConfigOption = None) -> None:
    """Let a drained pool serve again."""
    settings = settings_from(config)

    async def main(bus: Bus) -> int:
        rested = await orders.undrain(bus, pool, pools.author(bus))
        OUT.print(f"pool {pool} {'starts its engines' if rested else 'was not drained'}", markup=False)
        return Exit.OK

    raise typer.Exit(_on_bus(settings, main))


@app.command("reload")
def reload(
    pool: PoolArgument,
    model: Annotated[str, typer.Argument(metavar="MODEL_REF", help="The model it is to serve.")],
    config: ConfigOption = None,
) -> None:
    """Give the pool another model while it serves. It changes over as a whole when every replica of the new model is
    ready, and keeps the one it has when one fails: see orchctl status, or the pool's health."""
    settings = settings_from(config)

    async def main(bus: Bus) -> int:
        asked = await orders.reload(bus, pool, pools.author(bus), new_model_ref=model)
        OUT.print(f"pool {pool}: reload to {model} is {asked.state}", markup=False)
        return Exit.OK

    raise typer.Exit(_on_bus(settings, main))


def _on_bus(settings: Settings, main: Callable[[Bus], Awaitable[int]]) -> int:
    """Connect, run, and tell what can go wrong with the bucket."""

    async def connected() -> int:
        async with bus_client.connected(settings.nats) as bus:
            try:
                return await main(bus)
            except NotThere as error:
                raise _no_pool(str(error)) from error
            except Underway as error:
                raise Problem(str(error), exit_code=Exit.USAGE) from error
            except WrongSequence as error:
                raise Problem(
                    "somebody else changes the pool at the same time, and nothing was written",
                    fix="look with orchctl pool show, then try again",
                ) from error
            except msgspec.MsgspecError as error:
                raise Problem(
                    f"what the bus holds of the pool cannot be read: {error}",
                    fix="write it anew: orchctl pool apply FILE",
                ) from error

    return run(connected)


def _no_pool(pool: str) -> Problem:
    return Problem(f"there is no pool {pool!r}", fix=_LIST, exit_code=Exit.USAGE)


def _read(file: Path) -> tuple[PoolSpec, ...]:
    """Raises Problem with what is wrong in the file."""
    try:
        found = msgspec.convert(tomllib.loads(file.read_text(encoding="utf-8")), _File).pools
    except OSError as error:
        raise Problem(f"cannot read {file}: {error.strerror}", exit_code=Exit.USAGE) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Problem(f"{file} is not valid TOML: {error}", exit_code=Exit.USAGE) from error
    except msgspec.ValidationError as error:
        raise Problem(f"{file}: {error}", fix="see: orchctl config example", exit_code=Exit.USAGE) from error
    if not found:
        raise Problem(f"{file} has no [[pools]]", fix="see: orchctl config example", exit_code=Exit.USAGE)
    if len({pool.id for pool in found}) < len(found):
        raise Problem(f"{file} defines a pool twice", exit_code=Exit.USAGE)
    return found


def _print_pool(found: Entry[PoolSpec], shown: list[Row], *, as_json: bool) -> None:
    if as_json:
        keys = {row.key: row.value for row in shown}
        write_json({"revision": found.seq, "keys": keys, "set": [row.key for row in shown if row.was_set]})
        return
    table = plain_table("key", "value", "")
    table.columns[0].no_wrap = True
    for row in shown:
        table.add_row(row.key, Text(_shown(row.value)), "" if row.was_set else "default")
    OUT.print(table)
    ERR.print(f"[bright_black]revision {found.seq}[/]")


def _print_changed(made: list[Changed], *, as_json: bool) -> int:
    if as_json:
        write_json(
            {"pools": [{"pool_id": each.pool.id, "revision": each.revision, "changes": each.changes} for each in made]}
        )
        return Exit.OK
    for each in made:
        for change in each.changes:
            OUT.print(f"{each.pool.id}  {change}", markup=False)
        if not each.changes:
            OUT.print(f"pool {each.pool.id} is so already", markup=False)
    return Exit.OK


def _shown(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else msgspec.json.encode(value).decode()
