"""`orchctl config`: the example, and what is in effect."""

from typing import Annotated

import msgspec
import typer

from llorch_ctl import config_file
from llorch_ctl.terminal import ConfigOption, JsonOption, settings_from, write_json

app = typer.Typer(help="The config file: an example, and what is in effect.", no_args_is_help=True)


@app.command("show")
def show(
    config: ConfigOption = None,
    as_json: JsonOption = False,
    profile: Annotated[str | None, typer.Option(help="As for `up`.")] = None,
) -> None:
    """Settings in effect: file, environment and defaults merged. Holds no secret."""
    settings = settings_from(config, profile=profile)
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
