"""`python -m bench [--json FILE] [--only NAME …] [--lazy-sync]`"""

import argparse
import asyncio
import os
import platform
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from bench.scenarios import SCENARIOS, Row, measure


def show(rows: list[Row], console: Console) -> None:
    table = Table(title="milliseconds are p50 / p99; CPU is seconds per million tokens", title_justify="left")
    for name in ("scenario", "tasks/s", "tok/s", "accept", "first token", "added per token", "gateway", "nats", "node"):
        table.add_column(name, justify="left" if name == "scenario" else "right")
    for row in rows:
        cpu = row.cpu_per_million_tokens if row.tokens > 10 * row.tasks else {}
        table.add_row(
            row.title,
            f"{row.tasks_per_s:g}",
            f"{row.tokens_per_s:,}",
            "{:g} / {:g}".format(*row.accept_ms),
            "{:g} / {:g}".format(*row.first_token_ms),
            "{:g} / {:g}".format(*row.token_ms),
            *(f"{cpu[role]:g}" if cpu else f"{row.cpu_ms_per_task[role]:g} ms" for role in ("gateway", "nats", "node")),
        )
    console.print(table)
    console.print("One-token and accept rows show CPU milliseconds per task. Refused or failed tasks:", end=" ")
    console.print(sum(row.refused + row.failed for row in rows))


async def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--only", nargs="+", choices=[scenario.name for scenario in SCENARIOS])
    parser.add_argument(
        "--lazy-sync", action="store_true", help="do not fsync every stored message (`orchctl up` does)"
    )
    options = parser.parse_args()
    console = Console(width=150)
    rows = []
    for scenario in SCENARIOS:
        if not options.only or scenario.name in options.only:
            console.print(f"· {scenario.title}")
            rows.append(await measure(scenario, sync_always=not options.lazy_sync))
    show(rows, console)
    report = {
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "sync_always": not options.lazy_sync,
        "rows": rows,
    }
    encoded = msgspec.json.format(msgspec.json.encode(report), indent=1)
    if options.json:
        options.json.write_bytes(encoded)
    else:
        console.print_json(encoded.decode())


if __name__ == "__main__":
    asyncio.run(main())
