"""`python -m bench [--json FILE] [--only NAME …] [--lazy-sync]`"""

import argparse
import asyncio
import os
import platform
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.table import Table

from bench import cancel, core, disconnect, open_streams, takeover, waiting
from bench.scenarios import SCENARIOS, Row, measure

CORE: Final = "core"
CANCEL: Final = "cancel"
DISCONNECT: Final = "disconnect"
CANCEL_REAL: Final = "cancel_real"
"""Only when it is asked for: it fetches an engine and a model."""
OPEN_STREAMS: Final = "open_streams"
TAKEOVER: Final = "takeover"
WAITING: Final = "waiting"


def show(rows: list[Row], console: Console) -> None:
    table = Table(title="milliseconds are p50 / p99; CPU is seconds per million tokens", title_justify="left")
    for name in (
        "scenario",
        "tasks/s",
        "tok/s",
        "accept",
        "first token",
        "engine's own",
        "added per token",
        "gateway",
        "nats",
        "node",
    ):
        table.add_column(name, justify="left" if name == "scenario" else "right")
    for row in rows:
        cpu = row.cpu_per_million_tokens if row.tokens > 10 * row.tasks else {}
        table.add_row(
            row.title,
            f"{row.tasks_per_s:g}",
            f"{row.tokens_per_s:,}",
            "{:g} / {:g}".format(*row.accept_ms),
            "{:g} / {:g}".format(*row.first_token_ms),
            "{:g} / {:g}".format(*row.engine_first_token_ms) if any(row.engine_first_token_ms) else "",
            "{:g} / {:g}".format(*row.token_ms),
            *(f"{cpu[role]:g}" if cpu else f"{row.cpu_ms_per_task[role]:g} ms" for role in ("gateway", "nats", "node")),
        )
    console.print(table)
    console.print("One-token and accept rows show CPU milliseconds per task. Refused or failed tasks:", end=" ")
    console.print(sum(row.refused + row.failed for row in rows))


def openai_ratio(rows: list[Row], console: Console) -> dict[str, float]:
    """Gateway CPU per token of the OpenAI route against the task route, where both were measured."""
    used = {row.scenario: row.cpu_per_million_tokens["gateway"] for row in rows if row.cpu_per_million_tokens}
    if not {"paced", "paced_openai"} <= used.keys():
        return {}
    ratio = round(used["paced_openai"] / used["paced"], 2)
    console.print(f"A token over the OpenAI route costs the gateway {ratio:g} times what it costs over the task route.")
    return {"openai_gateway_cpu_ratio": ratio}


def show_core(rows: list[core.CoreRow], bytes_per_task: int, console: Console) -> None:
    table = Table(title="the scheduler's core, one process, no bus", title_justify="left")
    for name in ("queued", "tenants", "replicas", "placements/s", "whole tasks/s", "p99 of an event"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            f"{row.queued:,}",
            f"{row.tenants:,}",
            f"{row.replicas:,}",
            f"{row.decisions_per_s:,}",
            f"{row.tasks_per_s:,}",
            f"{row.p99_us:g} µs",
        )
    console.print(table)
    console.print(f"A waiting task takes {bytes_per_task:,} bytes in the core, besides its request.")


def show_figures(title: str, row: Any, console: Console) -> None:
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in msgspec.to_builtins(row).items():
        table.add_row(
            name, " / ".join(f"{each:,}" for each in value) if isinstance(value, tuple | list) else f"{value:,}"
        )
    console.print(table)


async def main() -> None:
    names = [*(scenario.name for scenario in SCENARIOS), CORE, CANCEL, DISCONNECT, OPEN_STREAMS, TAKEOVER, WAITING]
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--only", nargs="+", choices=[*names, CANCEL_REAL])
    parser.add_argument(
        "--lazy-sync", action="store_true", help="do not fsync every stored message (`orchctl up` does)"
    )
    options = parser.parse_args()
    chosen = options.only or names
    console = Console(width=150)
    report: dict[str, Any] = {
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "sync_always": not options.lazy_sync,
    }
    rows = []
    for scenario in SCENARIOS:
        if scenario.name in chosen:
            console.print(f"· {scenario.title}")
            rows.append(await measure(scenario, sync_always=not options.lazy_sync))
    if rows:
        show(rows, console)
    report["rows"] = rows
    report |= openai_ratio(rows, console)
    if CORE in chosen:
        console.print("· decisions of the scheduler's core")
        report |= {"core": core.rows(), "core_bytes_per_task": core.bytes_per_task()}
        show_core(report["core"], report["core_bytes_per_task"], console)
    if CANCEL in chosen:
        console.print(f"· {cancel.SLOTS} long prompts are cancelled before their first token, at another gateway")
        report["cancel"] = await cancel.measure(cancel.mock_case(), sync_always=not options.lazy_sync)
        show_figures("cancel", report["cancel"], console)
    if DISCONNECT in chosen:
        console.print("· readers leave: until the gateway knows")
        report["disconnect"] = await disconnect.measure()
        show_figures("disconnect, p50 / p99 / longest", report["disconnect"], console)
    if CANCEL_REAL in chosen:
        console.print(f"· the same with {cancel.REAL_SLOTS} long prompts in a real engine")
        report["cancel_real"] = await cancel.measure(cancel.real_case(), sync_always=not options.lazy_sync)
        show_figures("cancel, real engine", report["cancel_real"], console)
    if OPEN_STREAMS in chosen:
        console.print(f"· {open_streams.STREAMS:,} streams open at once on one gateway")
        report["open_streams"] = await open_streams.measure(sync_always=not options.lazy_sync)
        show_figures("open streams", report["open_streams"], console)
    if TAKEOVER in chosen:
        console.print(f"· a scheduler is killed while {takeover.TASKS:,} tasks wait")
        report["takeover"] = await takeover.measure()
        show_figures("takeover", report["takeover"], console)
    if WAITING in chosen:
        console.print(f"· {waiting.OVERLOAD} times more clients than places, waiting as they are told")
        report["waiting"] = await waiting.measure(sync_always=not options.lazy_sync)
        show_figures("waiting", report["waiting"], console)
    encoded = msgspec.json.format(msgspec.json.encode(report), indent=1)
    if options.json:
        options.json.write_bytes(encoded)
    else:
        console.print_json(encoded.decode())


if __name__ == "__main__":
    asyncio.run(main())
