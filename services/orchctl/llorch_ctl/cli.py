"""The command line: one line per command; each lives in its own module under `commands`."""

import typer

from llorch_ctl.commands import (
    artifact,
    audit,
    bus,
    bus_users,
    catalog,
    config,
    dead,
    demo,
    doctor,
    engine,
    pool,
    session,
    simulate,
    status,
    task,
    tenant,
    token,
    up,
    version,
    why,
)
from llorch_ctl.exits import MEANINGS

_EPILOG = "Exit codes:\n\n" + "\n\n".join(f"{int(code):>3}  {meaning}" for code, meaning in MEANINGS.items())

app = typer.Typer(
    name="orchctl",
    help="Run llama-orch on this machine, and use one that runs.",
    epilog=_EPILOG,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("up")(up.up)
app.command("bus")(bus.bus)
app.command("bus-users")(bus_users.bus_users)
app.command("status")(status.status)
app.add_typer(task.app, name="task")
app.command("why")(why.why)
app.add_typer(engine.app, name="engine")
app.add_typer(pool.app, name="pool")
app.add_typer(tenant.app, name="tenant")
app.add_typer(catalog.app, name="catalog")
app.add_typer(session.app, name="session")
app.add_typer(artifact.app, name="artifact")
app.add_typer(dead.app, name="dead")
app.add_typer(audit.app, name="audit")
app.command("simulate")(simulate.simulate)
app.command("doctor")(doctor.doctor)
app.add_typer(token.app, name="token")
app.add_typer(config.app, name="config")
app.command("version")(version.version)
