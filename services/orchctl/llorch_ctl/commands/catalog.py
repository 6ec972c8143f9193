"""`orchctl catalog`: which models there are, who vouches for them, and whether they may be used."""

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.text import Text

from llorch_ctl.at_gateway import at_gateway, pages, path
from llorch_ctl.commands.status import plain_table
from llorch_ctl.exits import Exit, Problem
from llorch_ctl.gateway_client import GatewayClient
from llorch_ctl.terminal import OUT, ConfigOption, JsonOption, write_json
from llorch_shared.wire.catalog import LIST_MAX, CatalogEntry, CatalogList, ModelState, StateChange, VerifyStarted

app = typer.Typer(
    help="Models: digest, signatures, tags and state. Nodes load what the trust policy permits; tasks are taken for "
    "Active and Canary models.",
    no_args_is_help=True,
)

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Id of a model in the catalog.")]


@app.command("list")
def list_(
    tag: Annotated[str, typer.Option(help="Only with this tag.")] = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Models, by id."""

    async def main(client: GatewayClient) -> None:
        table = plain_table("model", "state", "signed", "verified", "tags", "source")
        asked = pages(client, ("catalog", "models"), {"tag": tag}, CatalogList, limit=LIST_MAX, page_max=LIST_MAX)
        async for page in asked:
            for model in page.models:
                if as_json:
                    write_json(model, lines=True)
                else:
                    table.add_row(*_row(model))
        if not as_json:
            OUT.print(table)

    raise at_gateway(config, main)


@app.command("show")
def show(model: ModelArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """An entry, with the outcome of its last verification."""

    async def main(client: GatewayClient) -> None:
        entry = await client.ask("GET", path("catalog", "models", model), CatalogEntry)
        if as_json:
            write_json(entry)
            return
        table = plain_table("model", "")
        for name, value in msgspec.to_builtins(entry).items():
            table.add_row(name, Text(str(value)))
        OUT.print(table)

    raise at_gateway(config, main)


@app.command("add")
def add(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The model as JSON (CatalogModel); - reads input.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Enter a model, if the trust policy takes it. The same one again is no error."""
    try:
        body = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise Problem(f"cannot read {file}: {error.strerror}", exit_code=Exit.USAGE) from error

    async def main(client: GatewayClient) -> None:
        entry = await client.ask("POST", path("catalog", "models"), CatalogEntry, body=body)
        if as_json:
            write_json(entry)
            return
        OUT.print(f"model {entry.id} is {entry.state}", markup=False)
        for warning in entry.warnings:
            OUT.print(f"warning: {warning}", markup=False)

    raise at_gateway(config, main)


@app.command("verify")
def verify(model: ModelArgument, config: ConfigOption = None) -> None:
    """Have the nodes that hold the model compare its file with the catalog: see orchctl catalog show."""

    async def main(client: GatewayClient) -> None:
        said = await client.ask("POST", path("catalog", "models", model, "verify"), VerifyStarted)
        OUT.print(f"verification of {model}: {said.status}", markup=False)

    raise at_gateway(config, main)


@app.command("state")
def state(
    model: ModelArgument,
    wanted: Annotated[ModelState, typer.Argument(metavar="STATE", help=", ".join(ModelState))],
    deadline_ms: Annotated[
        int, typer.Option(min=0, max=86_400_000, help="Of a retirement: how long running tasks may take to end.")
    ] = 0,
    config: ConfigOption = None,
) -> None:
    """Move a model through its life. The pools of a Retired one rest."""
    body = msgspec.json.encode(StateChange(state=wanted, deadline_ms=deadline_ms))

    async def main(client: GatewayClient) -> None:
        await client.command("POST", path("catalog", "models", model, "state"), body=body)
        OUT.print(f"model {model} is {wanted}", markup=False)

    raise at_gateway(config, main)


@app.command("delete")
def delete(model: ModelArgument, config: ConfigOption = None) -> None:
    """Forget an entry. Files on nodes stay."""

    async def main(client: GatewayClient) -> None:
        await client.command("DELETE", path("catalog", "models", model))
        OUT.print(f"model {model} is not in the catalog any more", markup=False)

    raise at_gateway(config, main)


def _row(model: CatalogEntry) -> tuple[Text | str, ...]:
    signed = any(signature.verified for signature in model.signatures)
    verified = model.verification.result.value if model.verification is not None else ""
    tags = " ".join(model.tags)
    return Text(model.id), model.state.value, "yes" if signed else "no", verified, Text(tags), Text(model.source_url)
