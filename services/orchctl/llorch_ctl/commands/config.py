"""`orchctl config`: the example, and what is in effect."""

from typing import Annotated

import msgspec
import typer

from llorch_ctl import bus_client, config_file, pools
from llorch_ctl.exits import Exit
from llorch_ctl.terminal import OUT, ConfigOption, JsonOption, SetOption, run, settings_from, write_json
from llorch_shared import streams
from llorch_shared.pool_keys import without_secrets
from llorch_shared.settings import Settings

app = typer.Typer(help="The config file: an example, what is in effect, its pools on the bus.", no_args_is_help=True)


@app.command("show")
def show(
    config: ConfigOption = None,
    as_json: JsonOption = False,
    profile: Annotated[str | None, typer.Option(help="As for `up`.")] = None,
    assignments: SetOption = None,
) -> None:
    """Settings in effect: file, environment and defaults merged. The environment of engines is hidden."""
    settings = settings_from(config, assignments, profile=profile)
    settings = msgspec.structs.replace(settings, pools=tuple(without_secrets(pool) for pool in settings.pools))
    if as_json:
        write_json(msgspec.to_builtins(settings))
    else:
        typer.echo(config_file.render(settings), nl=False)


@app.command("example")
def example(as_json: JsonOption = False) -> None:
    """A commented config file to start from: orchctl config example > llorch.toml"""
    if as_json:
        write_json({"toml": config_file.EXAMPLE})
    else:
        typer.echo(config_file.EXAMPLE, nl=False)


@app.command("apply")
def apply(
    config: ConfigOption = None,
    as_json: JsonOption = False,
    built_in: Annotated[
        bool, typer.Option("--built-in", help="Instead of the config's pools: `default`, the built-in one on the CPU.")
    ] = False,
) -> None:
    """Write the config's pools to the bus, where nothing is started by `up`: in containers, on a cluster.

    Pools that the config does not name are removed.
    """
    settings = settings_from(config)
    if built_in:
        settings = msgspec.structs.replace(settings, pools=(config_file.embedded_pool("default"),))
    raise typer.Exit(run(lambda: _apply(settings, as_json=as_json)))


async def _apply(settings: Settings, *, as_json: bool) -> int:
    async with bus_client.connected(settings.nats) as bus:
        await bus.ensure(streams.base(token_bytes_max=settings.nats.token_bytes_max, replicas=settings.nats.replicas))
        said = await pools.apply(bus, settings.pools)
    if as_json:
        write_json({"changes": said})
    else:
        OUT.print("\n".join(said) or "the pools are as the config says")
    return Exit.OK
