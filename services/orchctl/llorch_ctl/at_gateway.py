"""Commands that ask the gateway, as any client does: its guards, its tokens and its audit are theirs, too."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import quote, urlencode

import typer

from llorch_ctl.exits import Exit
from llorch_ctl.gateway_client import GatewayClient, gateway_url, trust
from llorch_ctl.terminal import run, settings_from
from llorch_shared.settings_loading import secret


class Page(Protocol):
    @property
    def cursor(self) -> str | None: ...


P = TypeVar("P", bound=Page)


def at_gateway(config: Path | None, main: Callable[[GatewayClient], Awaitable[None]]) -> typer.Exit:
    """Connect, run, and how to exit then."""
    settings = settings_from(config)

    async def connected() -> int:
        async with GatewayClient(gateway_url(settings), secret("LLORCH_API_TOKEN"), tls=trust(settings)) as client:
            await main(client)
        return Exit.OK

    return typer.Exit(run(connected))


def path(*parts: str, **query: str) -> str:
    """Parts are quoted; what is empty is not asked for."""
    asked = urlencode({name: value for name, value in query.items() if value})
    return "/v1/" + "/".join(quote(part, safe="") for part in parts) + (f"?{asked}" if asked else "")


async def pages(
    client: GatewayClient, parts: Sequence[str], query: Mapping[str, str], page: type[P], *, limit: int, page_max: int
) -> AsyncIterator[P]:
    """Pages of a list, of together about `limit` entries. A page may be empty and have a next one."""
    cursor: str | None = ""
    while cursor is not None:
        asked = {**query, "limit": str(min(limit, page_max)), "cursor": cursor}
        found = await client.ask("GET", path(*parts, **asked), page)
        yield found
        cursor = found.cursor
