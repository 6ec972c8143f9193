"""`orchctl artifact`: plans, diffs and transcripts that were kept, by what they say."""

from typing import Annotated

import msgspec
import typer
from rich.text import Text

from llorch_ctl.at_gateway import at_gateway, pages, path
from llorch_ctl.commands.status import plain_table
from llorch_ctl.gateway_client import GatewayClient
from llorch_ctl.terminal import OUT, ConfigOption, JsonOption, write_json
from llorch_shared.wire.artifacts import LIST_MAX, ArtifactKind, ArtifactList, StoredArtifact

app = typer.Typer(help="Artifacts: documents that were kept under the digest of what they say.", no_args_is_help=True)


@app.command("list")
def list_(
    kind: Annotated[ArtifactKind | None, typer.Option(help="Only of this kind.")] = None,
    tag: Annotated[str, typer.Option(help="Only with this tag, for example task:ID.")] = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Artifacts of your tenant, oldest first."""
    query = {"kind": kind.value if kind is not None else "", "tag": tag}

    async def main(client: GatewayClient) -> None:
        table = plain_table("artifact", "kind", "bytes", "tags")
        async for page in pages(client, ("artifacts",), query, ArtifactList, limit=LIST_MAX, page_max=LIST_MAX):
            for one in page.artifacts:
                if as_json:
                    write_json(one, lines=True)
                else:
                    table.add_row(one.id, one.kind.value, str(one.bytes), Text(" ".join(one.tags)))
        if not as_json:
            OUT.print(table)

    raise at_gateway(config, main)


@app.command("show")
def show(
    artifact: Annotated[str, typer.Argument(metavar="ARTIFACT", help="Its id, sha256:…")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """An artifact; its content is the last thing that is shown."""

    async def main(client: GatewayClient) -> None:
        found = await client.ask("GET", path("artifacts", artifact), StoredArtifact)
        if as_json:
            write_json(found)
            return
        for name, value in msgspec.to_builtins(found).items():
            if name != "content":
                OUT.print(f"{name:<12} {value}", markup=False)
        write_json(found.content)

    raise at_gateway(config, main)
