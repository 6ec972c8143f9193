"""`orchctl tenant`: what each tenant may use of every pool that has no entry of its own for it."""

from typing import Annotated, Any

import msgspec
import typer
from rich.text import Text

from llorch_ctl.at_gateway import at_gateway, path
from llorch_ctl.commands.status import plain_table
from llorch_ctl.core.assignments import assigned
from llorch_ctl.exits import Exit, Problem
from llorch_ctl.gateway_client import GatewayClient
from llorch_ctl.terminal import OUT, ConfigOption, JsonOption, write_json
from llorch_shared.settings import SettingsError
from llorch_shared.wire.desired import Tenant, TenantList

app = typer.Typer(
    help="Weights and quotas of tenants, in effect at once in each pool that has no entry of its own for the tenant "
    "(orchctl pool set POOL admission.fairness.tenants.TENANT.weight=5).",
    no_args_is_help=True,
)

TenantArgument = Annotated[str, typer.Argument(metavar="TENANT", help="Id of a tenant.")]


@app.command("list")
def list_(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Every tenant that has limits of its own."""

    async def main(client: GatewayClient) -> None:
        found = await client.ask("GET", path("tenants"), TenantList)
        _print(found.tenants, as_json=as_json, whole=found)

    raise at_gateway(config, main)


@app.command("show")
def show(tenant: TenantArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """What a tenant may use of each pool."""

    async def main(client: GatewayClient) -> None:
        found = await client.ask("GET", path("tenants", tenant), Tenant)
        _print((found,), as_json=as_json, whole=found)

    raise at_gateway(config, main)


@app.command("set")
def set_(
    tenant: TenantArgument,
    assignments: Annotated[
        list[str],
        typer.Argument(metavar="KEY=VALUE...", help="weight, max_concurrent, rps, tokens_per_min, kv_mb; null: none."),
    ],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a tenant, or change what it may use, for example:

    orchctl tenant set team-a weight=5 max_concurrent=8 tokens_per_min=200000
    """

    async def main(client: GatewayClient) -> None:
        there = path("tenants", tenant)
        version = await client.version(there)
        before = await client.ask("GET", there, Tenant) if version else None
        body = msgspec.json.encode(_changed(tenant, before, assignments))
        found = await client.ask("PUT", there, Tenant, body=body, over=version)
        _print((found,), as_json=as_json, whole=found)

    raise at_gateway(config, main)


@app.command("delete")
def delete(tenant: TenantArgument, config: ConfigOption = None) -> None:
    """The tenant has what every tenant has from now on."""

    async def main(client: GatewayClient) -> None:
        await client.command("DELETE", path("tenants", tenant))
        OUT.print(f"tenant {tenant} has no limits of its own", markup=False)

    raise at_gateway(config, main)


def _changed(tenant: str, before: Tenant | None, assignments: list[str]) -> Tenant:
    """Raises Problem for what no tenant has."""
    try:
        given = {key: None if value == "null" else value for key, value in assigned(assignments).items()}
        kept: dict[str, Any] = msgspec.to_builtins(before) if before is not None else {"id": tenant}
        wanted = {**kept, **given}
        return msgspec.convert({key: value for key, value in wanted.items() if value is not None}, Tenant)
    except (SettingsError, msgspec.ValidationError) as error:
        raise Problem(str(error), fix="see: orchctl tenant set --help", exit_code=Exit.USAGE) from error


def _print(tenants: tuple[Tenant, ...], *, as_json: bool, whole: Tenant | TenantList) -> None:
    if as_json:
        write_json(whole)
        return
    table = plain_table("tenant", "weight", "max_concurrent", "rps", "tokens_per_min", "kv_mb")
    for one in tenants:
        limits = (one.max_concurrent, one.rps, one.tokens_per_min, one.kv_mb)
        table.add_row(Text(one.id), str(one.weight), *("" if limit is None else str(limit) for limit in limits))
    OUT.print(table)
