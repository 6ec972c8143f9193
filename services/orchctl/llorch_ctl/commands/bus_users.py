"""`orchctl bus-users`: users of the bus with no more rights than each needs, as nkeys and a part of nats-server's
configuration.
"""

from pathlib import Path
from typing import Annotated

import typer

from llorch_ctl import bus_seeds
from llorch_ctl.exits import Exit, Problem
from llorch_ctl.terminal import ERR, OUT, JsonOption, write_json
from llorch_shared import bus_users as users
from llorch_shared.bus_accounts import SERVICES

EXISTING = f"""A server that has streams already keeps them in the account $G: stop it, and rename the folder
jetstream/$G below its store_dir to jetstream/{SERVICES}."""


def bus_users(
    folder: Annotated[Path, typer.Argument(help="Where users.conf and the seeds are, or shall be.", file_okay=False)],
    *,
    node: Annotated[
        list[str] | None, typer.Option("--node", "-n", help="A node (poold.node_id); may be repeated.")
    ] = None,
    tenant: Annotated[
        list[str] | None,
        typer.Option("--tenant", "-t", help="A tenant that may use the bus itself; may be repeated."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="What nats-server includes, if not FOLDER/users.conf: it holds no secret.", dir_okay=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write users of the bus: FOLDER/users.conf for nats-server, FOLDER/<user>/seed.nk for each user.

    Users: gateway, scheduler, auditor, orchctl (everything), poold-NODE and provisioner-NODE of each --node, and
    tenant-TENANT of each --tenant, in an account of its own. Give each service its seed (nats.nkey_seed_file,
    NATS_NKEY_SEED_FILE), and nats-server the line: include ./users.conf

    Who has a seed there stays, so `--node NEW` alone adds a node; reload nats-server then (SIGHUP to it, or to
    `orchctl bus`). To revoke a seed remove its folder first, and those of both users of a node that is gone.
    """
    try:
        nodes, tenants = users.owners(bus_seeds.present(folder))
        wanted = (*users.services(_once(nodes, node)), *users.tenants(_once(tenants, tenant)))
        fresh = bus_seeds.write(folder, wanted, config)
    except ValueError as error:
        raise Problem(str(error), exit_code=Exit.USAGE) from error
    except OSError as error:
        raise Problem(f"cannot write {error.filename or folder}: {error.strerror}") from error
    names = [user.name for user in wanted]
    written = str(config or folder / bus_seeds.CONFIG)
    if as_json:
        write_json({"config": written, "users": names, "new": fresh})
        raise typer.Exit(Exit.OK)
    OUT.print(written)
    ERR.print(f"{len(names)} users, {len(fresh)} of them new: {', '.join(names)}", style="dim")
    if len(fresh) == len(names):
        ERR.print(" ".join(EXISTING.split()), style="dim")
    raise typer.Exit(Exit.OK)


def _once(present: list[str], more: list[str] | None) -> list[str]:
    return list(dict.fromkeys([*present, *(more or ())]))
