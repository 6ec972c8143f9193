"""`orchctl audit`: whether the audit stream is whole, and says what the live system says."""

import time
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Final

import typer
from rich.text import Text

from llorch_ctl import bus_client
from llorch_ctl.at_gateway import at_gateway, pages
from llorch_ctl.audit_verification import Verification
from llorch_ctl.commands.status import plain_table
from llorch_ctl.core.audit_report import Report
from llorch_ctl.core.findings import TO_DO, Violation
from llorch_ctl.exits import Exit
from llorch_ctl.gateway_client import GatewayClient
from llorch_ctl.terminal import ERR, OUT, ConfigOption, JsonOption, run, settings_from, write_json
from llorch_shared.http_api.audit import LIST_MAX
from llorch_shared.settings import Settings
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.audit import AuditEvent, AuditList, AuditRecord

VIOLATIONS_SHOWN: Final = 20
"""On a terminal; --json has the first thousand."""
PROGRESS_EVERY_S: Final = 1.0

app = typer.Typer(
    help="The audit stream: who did what and when, kept for 30 days. Every process writes its records as a chain, each "
    "with the hash of the one before it.",
    no_args_is_help=True,
)


@app.command("verify")
def verify(
    since_min: Annotated[
        int | None, typer.Option("--since-min", help="Only what was stored in the last N minutes.", min=1)
    ] = None,
    progress: Annotated[bool, typer.Option("--progress", help="Say each second how far it is.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read the whole audit stream of the running system and check it. Exit code 1 when something is wrong.

    Chains: no record was changed, removed, doubled or moved. Tasks: every move is legal and each ends once. Run
    records: state, attempt and tokens of every ended task are as on record. Usage follows from the records alone.

    Not found: a missing end of the chain of a process that was killed, unless a run record shows it, and what somebody
    with access to the server's disk writes anew to the end of a chain.
    """
    settings = settings_from(config)
    raise typer.Exit(run(lambda: _verify(settings, since_min=since_min, progress=progress, as_json=as_json)))


@app.command("list")
def list_(
    task: Annotated[str, typer.Option(help="Only of this task; pools, tenants and models stand under their ids.")] = "",
    event: Annotated[AuditEvent | None, typer.Option(help="Only of this kind.")] = None,
    since_min: Annotated[int | None, typer.Option("--since-min", min=1, help="Of the last N minutes.")] = None,
    *,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many at most.")] = 100,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """What happened, by whom and through which door, oldest first."""
    from_ms = str(now_ms() - since_min * 60_000) if since_min else ""
    query = {"task": task, "event": event.value if event is not None else "", "from_ms": from_ms}

    async def main(client: GatewayClient) -> None:
        left = limit
        async for page in pages(client, ("audit",), query, AuditList, limit=limit, page_max=LIST_MAX):
            for record in page.records[:left]:
                if as_json:
                    write_json(record, lines=True)
                else:
                    OUT.print(_plain(_line(record)))
            left -= len(page.records)
            if left <= 0:
                return

    raise at_gateway(config, main)


def _line(record: AuditRecord) -> str:
    at = datetime.fromtimestamp(record.at_ms / 1000).astimezone().isoformat(" ", "milliseconds")
    who = " ".join(part for part in (record.actor, record.identity, record.channel) if part)
    said = " ".join(f"{key}={value}" for key, value in record.detail.items())
    return f"{at}  {record.event:<15}  {record.task_id}  {who}  {said}"


async def _verify(settings: Settings, *, since_min: int | None, progress: bool, as_json: bool) -> int:
    at_ms = now_ms()
    async with bus_client.connected(settings.nats) as bus:
        found = await Verification(bus, now_ms=at_ms, told=_teller(progress)).run(
            since_ms=at_ms - since_min * 60_000 if since_min else 0
        )
    if as_json:
        write_json(found)
    else:
        _print(found)
    return Exit.OK if found.clean else Exit.FAILED


def _teller(wanted: bool) -> Callable[[str, int, int], None]:
    said = 0.0

    def tell(what: str, done: int, total: int) -> None:
        nonlocal said
        if wanted and (time.monotonic() - said >= PROGRESS_EVERY_S or done >= total):
            said = time.monotonic()
            ERR.print(f"{what}: {done} of {total}", markup=False)

    return tell


def _print(found: Report) -> None:
    if not found.records and found.clean:
        OUT.print("no audit records")
        return
    table = plain_table("audit", "", "")
    for what, count, said in _facts(found):
        table.add_row(what, str(count), Text(said))
    OUT.print(table)
    if found.usage:
        usage = plain_table("tenant", "pool", "ended tasks", "tokens in", "tokens out")
        for line in found.usage:
            usage.add_row(
                Text(line.tenant), Text(line.pool), str(line.tasks), str(line.tokens_in), str(line.tokens_out)
            )
        OUT.print()
        OUT.print(usage)
    OUT.print()
    if found.clean:
        OUT.print(Text("clean", "green"))
    else:
        _print_violations(found)


def _facts(found: Report) -> list[tuple[str, int, str]]:
    ends = ", ".join(f"{count} {state}" for state, count in found.ends.items())
    rows = [
        ("records", found.records, f"{found.unchained} of them unchained (an earlier release)" * bool(found.unchained)),
        ("writers", found.writers, f"{found.writers_closed} closed; the others run, or were killed"),
        ("tasks", found.tasks, ", ".join(part for part in (ends, f"{found.under_way} under way") if part)),
        ("compared", found.compared, f"ended tasks, with {found.runs} run records (kept for 72 hours)"),
    ]
    if found.newer:
        rows.append(("newer", found.newer, "records of a newer release: use its orchctl"))
    if found.unrecorded_moves:
        said = "moves of processes that died before they could say so"
        rows.append(("unrecorded", found.unrecorded_moves, said))
    if found.unadmitted:
        said = "tasks: their gateway died, or the record is older than this"
        rows.append(("unadmitted", found.unadmitted, said))
    if found.sessions_compared:
        rows.append(("sessions", found.sessions_compared, "accounts, with what their tasks took"))
    if found.unrecorded_settlements:
        said = "settlements of processes that died before they could say so"
        rows.append(("unsaid", found.unrecorded_settlements, said))
    if found.unknown:
        said = "accepted tasks: no scheduler answers, or they are too old"
        rows.append(("unknown", found.unknown, said))
    return rows


def _print_violations(found: Report) -> None:
    noun = "violation" if found.violations == 1 else "violations"
    OUT.print(Text(f"{found.violations} {noun}", "bold red"))
    shown = found.first[:VIOLATIONS_SHOWN]
    table = plain_table("record", "fault", "where", "")
    for violation in shown:
        table.add_row(str(violation.seq or ""), violation.fault, _plain(_where(violation)), _plain(violation.said))
    OUT.print(table)
    if found.violations > len(shown):
        OUT.print(f"… and {found.violations - len(shown)} more; --json has the first {len(found.first)}", markup=False)
    for to_do in dict.fromkeys(TO_DO[violation.fault] for violation in shown):
        OUT.print(Text.assemble(("to do: ", "bold"), to_do))


def _where(violation: Violation) -> str:
    parts = (violation.subject or (violation.task_id and f"task {violation.task_id}"), violation.writer)
    return " by ".join(part for part in parts if part)


def _plain(text: str) -> Text:
    """What was stored does not drive the terminal."""
    return Text("".join(character if character.isprintable() else "·" for character in text))
