"""`orchctl session`: what a session has used, what it may use, and its end."""

from typing import Annotated

import msgspec
import typer
from rich.text import Text

from llorch_ctl.at_gateway import at_gateway, path
from llorch_ctl.commands.status import plain_table
from llorch_ctl.gateway_client import GatewayClient
from llorch_ctl.terminal import OUT, ConfigOption, JsonOption, write_json
from llorch_shared.wire.session import SessionInfo, SessionRequest

app = typer.Typer(
    help="Sessions of your tenant. One has an account, and with it budgets, when it is set here, or where the tenant's "
    "policy (`sessions` of the config) gives one to each.",
    no_args_is_help=True,
)

SessionArgument = Annotated[str, typer.Argument(metavar="SESSION", help="UUID of a session.")]


@app.command("show")
def show(session: SessionArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """What it has had and what is left."""

    async def main(client: GatewayClient) -> None:
        _print(await client.ask("GET", path("sessions", session), SessionInfo), as_json=as_json)

    raise at_gateway(config, main)


@app.command("set")
def set_(
    session: SessionArgument,
    *,
    tokens: Annotated[int | None, typer.Option(min=0, help="Generated tokens.")] = None,
    time_ms: Annotated[int | None, typer.Option(min=0, help="Decode time, milliseconds.")] = None,
    cost: Annotated[float | None, typer.Option(min=0, help="In whatever the policy counts.")] = None,
    turns: Annotated[int | None, typer.Option(min=1, help="Tasks.")] = None,
    ttl_ms: Annotated[int | None, typer.Option(min=1000, help="It ends when it has had no task for so long.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give the session an account, or change what it may use; what is not said is the policy's."""
    wish = SessionRequest(
        ttl_ms=ttl_ms, turns_max=turns, tokens_budget=tokens, time_budget_ms=time_ms, cost_budget=cost
    )

    async def main(client: GatewayClient) -> None:
        body = msgspec.json.encode(wish)
        _print(await client.ask("PUT", path("sessions", session), SessionInfo, body=body), as_json=as_json)

    raise at_gateway(config, main)


@app.command("delete")
def delete(session: SessionArgument, config: ConfigOption = None) -> None:
    """End the session; what engines hold of it goes."""

    async def main(client: GatewayClient) -> None:
        await client.command("DELETE", path("sessions", session))
        OUT.print(f"session {session} has ended", markup=False)

    raise at_gateway(config, main)


def _print(info: SessionInfo, *, as_json: bool) -> None:
    if as_json:
        write_json(info)
        return
    table = plain_table("session", "")
    for name, value in msgspec.to_builtins(info).items():
        table.add_row(name, Text(str(value)))
    OUT.print(table)
