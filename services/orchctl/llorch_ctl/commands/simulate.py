"""`orchctl simulate`: the scheduler's policy under a load that is only simulated."""

import sys
import tempfile
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Group as Stack
from rich.console import RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from llorch_ctl import bus_client, recording, simulation
from llorch_ctl.commands.status import plain_table
from llorch_ctl.exits import Problem
from llorch_ctl.terminal import ERR, OUT, ConfigOption, run, settings_from
from llorch_shared.settings import Settings
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.simulated import Comparison, Group, Outcome, Result, SimulatorProgress

STDOUT: Final = Path("-")
TENANTS_SHOWN_MAX: Final = 30


def simulate(
    scenario: Annotated[str | None, typer.Argument(metavar="[SCENARIO]", help="One of those above.")] = None,
    *,
    config: ConfigOption = None,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal bytes.")] = 1,
    tasks: Annotated[int | None, typer.Option(help="How many tasks arrive. Default: as the scenario has it.")] = None,
    scale: Annotated[float, typer.Option(help="Times the load; the fleet grows with it.")] = 1.0,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Replay a CSV trace: Azure LLM inference or BurstGPT.")
    ] = None,
    audit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Replay a recorded audit stream instead of a scenario.")
    ] = None,
    audit_stream: Annotated[
        bool, typer.Option("--audit-stream", help="Replay the audit stream of the running system.")
    ] = False,
    since_min: Annotated[
        float, typer.Option(min=0.01, max=43_200, help="How far back --audit-stream reads, minutes.")
    ] = 60.0,
    export: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep what --audit-stream read, for --audit.")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(metavar="FILE", help=r"TOML with [\[pools]]: compare the present policy with this.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON; - is standard output.")
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write one page with plots.")] = None,
    progress: Annotated[bool, typer.Option(help="Show how far it is, at a terminal.")] = True,
) -> None:
    """Run the scheduler's own core against a simulated cluster.

    home: an RTX 3090 and an RTX 3060, people who chat, and a job queue

    team: 20 tenants on four RTX 3090

    fleet: 1,000 replicas in five pools, a million tasks; --scale makes it smaller

    overload: ten times what the cards can do, with clients that come back as told

    noisy-neighbour: two equal tenants, one of which sends fifty times as much

    deadline-mix: deadlines from seconds to half an hour, in bursts above what can be done

    node-loss: nodes that die and return

    canary: a tenth of the sessions on the next engine version, then back

    cold-start: engines that are still loading when the first clients come

    Ctrl-C ends it with what it has (exit code 130). With a recorded load or a second policy the table says who would
    have waited how long, been sent away or been late: as recorded, under the present policy, under the other.
    """
    arguments = [*([scenario] if scenario is not None else []), f"--seed={seed}", f"--scale={scale}"]
    arguments += [f"--policy={policy}"] if policy is not None else []
    arguments += [f"--tasks={tasks}"] if tasks is not None else []
    arguments += [f"--trace={trace}"] if trace is not None else []
    arguments += [f"--html={html}"] if html is not None else []
    with tempfile.TemporaryDirectory(prefix="llorch-simulate-") as folder:
        if audit_stream:
            audit = export or Path(folder) / "audit.jsonl"
            _record(settings_from(config), audit, since_min)
        arguments += [f"--audit={audit}"] if audit is not None else []
        kept = json_file if json_file not in (None, STDOUT) else None
        code, document = _run(arguments, kept or Path(folder) / "result.json", shown=progress)
    if not document:
        ERR.print("stopped before anything was simulated")
    elif json_file == STDOUT:
        sys.stdout.write(document.decode())
        sys.stdout.flush()
    elif audit is not None or policy is not None:
        OUT.print(_differences(simulation.read_comparison(document)))
    else:
        OUT.print(_table(simulation.read(document)))
    raise typer.Exit(code)


def _record(settings: Settings, file: Path, since_min: float) -> None:
    """Raises Problem."""

    async def read() -> recording.Recorded:
        async with bus_client.connected(settings.nats) as bus:
            return await recording.record(bus, file, from_ms=now_ms() - int(60_000 * since_min))

    try:
        recorded = run(read)
    except OSError as error:
        raise Problem(f"{file} cannot be written: {error}") from error
    ERR.print(f"{recorded.records:,} audit records of the last {since_min:g} min" + (", cut" if recorded.cut else ""))


def _run(arguments: list[str], result: Path, *, shown: bool) -> tuple[int, bytes]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=ERR, transient=True, disable=not (shown and ERR.is_terminal)) as bar:
        task = bar.add_task("simulating", total=None, speed="")

        def told(line: SimulatorProgress) -> None:
            speed = f"{line.simulated_s:,.0f} s simulated, {line.tasks_per_s:,.0f} tasks/s"
            speed += " with a compiled core" if line.compiled else ""
            bar.update(task, total=line.tasks, completed=line.ended, speed=speed)

        return simulation.simulate(arguments, result, told)


def _table(result: Result) -> Stack:
    """Title, facts, then classes, tenants and pools."""
    title = Text.assemble((result.scenario, "bold"), f"  {result.about}; seed {result.seed}")
    if result.partial:
        title.append("  stopped early", "bold yellow")
    tenants = list(result.tenants)
    more = len(tenants) - TENANTS_SHOWN_MAX
    parts: list[RenderableType] = [title, Text(), _facts(result), Text(), _waits("class", list(result.classes)), Text()]
    parts += [_waits("tenant", tenants[:TENANTS_SHOWN_MAX])]
    parts += [Text(f"and {more} more: see --json or --html", "bright_black")] if more > 0 else []
    pools = plain_table("pool", "replicas", "slots", "utilisation", "tokens/s")
    for pool in result.pools:
        pools.add_row(
            pool.pool_id,
            str(pool.replicas),
            str(pool.slots),
            f"{100 * pool.utilisation:.1f} %",
            f"{pool.tokens_per_s:,.1f}",
        )
    return Stack(*parts, Text(), pools)


def _facts(result: Result) -> Text:
    ends = ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in result.outcomes.items() if number)
    returns = result.returns
    back = f"; {returns.admitted:,} of {returns.tries:,} that came back as told were admitted"
    again = ", ".join(f"{number:,} {reason.replace('_', ' ')}" for reason, number in result.requeues.items())
    fair = ", ".join(
        f"{each.priority} {each.jain_mean:.3f} (worst minute {each.jain_least:.3f})"
        for each in result.fairness
        if each.jain_mean is not None
    )
    error = result.prediction
    told = f"{100 * error.error_median_ratio:.0f} % ({error.error_median_ms / 1000:,.1f} s) over {error.tasks:,} tasks"
    return Text(
        f"{result.arrived:,} tasks in {result.simulated_s:,.0f} s simulated: {ends or 'none ended'}\n"
        f"{result.tokens_per_s:,.0f} tokens/s, utilisation {100 * result.utilisation:.1f} %\n"
        f"{result.refusals:,} tries refused{back if returns.tries else ''}\n"
        f"placed again: {again or 'none'}\n"
        f"stopped for more urgent work: {result.preemptions:,}\n"
        f"fairness: {fair or 'not judged: there were no two tenants for a minute'}\n"
        f"predicted start, median error: {told if error.tasks else 'nobody waited a second'}"
    )


def _waits(kind: str, groups: list[Group]) -> Table:
    """Waits in seconds. Refused: sent away for good, or gave up. Late: ended before an engine had it."""
    table = plain_table(kind, "", "tasks", "done", "refused", "late", "in time", "p50 s", "p95", "p99")
    for group in groups:
        if not group.arrived:
            continue
        waits = (group.wait_ms.p50, group.wait_ms.p95, group.wait_ms.p99)
        table.add_row(
            group.name,
            "" if kind == "class" else group.priority[:5],
            f"{group.arrived:,}",
            f"{group.done:,}",
            f"{group.gave_up + group.infeasible:,}",
            f"{group.expired + group.dropped:,}",
            f"{100 * group.met:.1f}%" if group.due else "-",
            *(f"{wait / 1000:,.2f}" for wait in waits),
        )
    return table


def _differences(compared: Comparison) -> Stack:
    """Each class and tenant as recorded (if it was), under the present policy, and under the other."""
    title = Text(compared.about, "bold")
    if compared.partial:
        title.append("  stopped early", "bold yellow")
    table = plain_table("", "", "tasks", "", "p50 s", "p95 s", "away", "refused", "late", "missed")
    for row in compared.rows[: TENANTS_SHOWN_MAX + 2]:
        head = (row.name, row.priority[:5] if row.name != row.priority else "", f"{row.tasks:,}")
        for under, outcome in (("recorded", row.recorded), ("present", row.present), ("other", row.other)):
            if outcome is not None:
                table.add_row(*head, under, *_figures(outcome))
                head = ("", "", "")
    parts: list[RenderableType] = [title, Text(), table]
    if compared.reproduction is not None:
        found = compared.reproduction
        said = (
            f"the simulator meets {found.tasks:,} recorded waits within {found.error_median_ms:,.0f} ms in the median; "
            f"mean {found.simulated_mean_ms / 1000:,.2f} s, recorded {found.recorded_mean_ms / 1000:,.2f} s"
        )
        parts += [Text(), Text(said)]
    parts += [Text(f"left out: {number:,} tasks {reason}") for reason, number in compared.left_out.items()]
    return Stack(*parts)


def _figures(outcome: Outcome) -> list[str]:
    waits = (outcome.wait_p50_ms, outcome.wait_p95_ms)
    counts = (outcome.sent_away, outcome.refused, outcome.late, outcome.missed)
    return [*(f"{wait / 1000:,.2f}" for wait in waits), *(f"{count:,}" for count in counts)]
