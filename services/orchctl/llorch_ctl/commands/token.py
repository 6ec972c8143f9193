"""`orchctl token`: bearer tokens of the gateway's token file."""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from llorch_ctl import token_store
from llorch_ctl.commands.status import plain_table
from llorch_ctl.exits import Exit, Problem
from llorch_ctl.terminal import ERR, OUT, ConfigOption, JsonOption, settings_from, write_json
from llorch_shared import token_file
from llorch_shared.token_file import TokenEntry, TokenFileError
from llorch_shared.wire.task import Priority

app = typer.Typer(
    help="Bearer tokens that the gateway accepts, each with a tenant and limits of its own. The file "
    "(`gateway.tokens_file`) holds digests; gateways read it again within a second.",
    no_args_is_help=True,
)

FileOption = Annotated[
    Path | None, typer.Option("--file", help="Token file; without it `gateway.tokens_file` of the settings.")
]


@app.command("new")
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call the token: a-z, 0-9, '-' and '_'.")],
    tenant: Annotated[str, typer.Option("--tenant", "-t", help="Whose tasks its tasks are, and all that it sees.")],
    *,
    priority: Annotated[
        list[Priority] | None, typer.Option("--priority", help="A class it may use; may be repeated. All by default.")
    ] = None,
    requests_per_s: Annotated[float | None, typer.Option(help="Requests per second in the long run.")] = None,
    burst: Annotated[int | None, typer.Option(help="Requests at once after a pause.")] = None,
    streams_max: Annotated[int | None, typer.Option(help="Streams open at once.")] = None,
    days: Annotated[int | None, typer.Option(min=1, help="Good for so many days; without it for ever.")] = None,
    file: FileOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a token. It is shown now and never again: the file keeps its digest."""
    path = _path(file, config)
    token = token_store.fresh()
    until = None if days is None else datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)
    try:
        entry = token_store.add(
            path,
            token,
            name=name,
            tenant=tenant,
            priorities=priority or None,
            requests_per_s=requests_per_s,
            burst=burst,
            streams_max=streams_max,
            expires=until,
        )
    except (TokenFileError, OSError) as error:
        raise _problem(error) from error
    if as_json:
        write_json({"token": token, "file": str(path), **_facts(entry)})
    else:
        sys.stdout.write(token + "\n")
        ERR.print(f"token {name} of tenant {tenant} is in {path}; this is the only time it is shown", style="dim")
    raise typer.Exit(Exit.OK)


@app.command("list")
def list_(file: FileOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Who has a token, and what it permits. `fp6` is how logs and the audit name it: `token:<fp6>`."""
    try:
        entries = token_file.read(_path(file, config))
    except TokenFileError as error:
        raise _problem(error) from error
    if as_json:
        write_json({"tokens": [_facts(entry) for entry in entries]})
        raise typer.Exit(Exit.OK)
    table = plain_table("name", "fp6", "tenant", "priorities", "requests/s", "burst", "streams", "expires")
    for entry in entries:
        facts = _facts(entry)
        table.add_row(*("-" if value is None else str(value) for value in facts.values()))
    OUT.print(table if entries else "no tokens")
    raise typer.Exit(Exit.OK)


def _facts(entry: TokenEntry) -> dict[str, Any]:
    """What may be shown: not the digest, with which a short token could be guessed."""
    return {
        "name": entry.name,
        "fp6": entry.sha256[:6],
        "tenant": entry.tenant,
        "priorities": ", ".join(entry.priorities),
        "requests_per_s": entry.requests_per_s,
        "burst": entry.burst_of() if entry.requests_per_s is not None else None,
        "streams_max": entry.streams_max,
        "expires": None if entry.expires is None else entry.expires.isoformat(),
    }


def _path(file: Path | None, config: Path | None) -> Path:
    path = file.absolute() if file is not None else settings_from(config).gateway.tokens_path()
    if path is None:
        raise Problem(
            "no token file is named",
            fix="set gateway.tokens_file in the config (LLORCH_TOKENS_FILE), or give --file",
            exit_code=Exit.USAGE,
        )
    return path


def _problem(error: TokenFileError | OSError) -> Problem:
    return Problem(str(error), exit_code=Exit.USAGE if isinstance(error, TokenFileError) else Exit.FAILED)
