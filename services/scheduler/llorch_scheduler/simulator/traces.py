"""Reads recorded loads: the Azure LLM inference trace and BurstGPT, both CSV, told apart by their header.

    TIMESTAMP,ContextTokens,GeneratedTokens                              Azure; date and time, any fraction of a second
    Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type BurstGPT; seconds

Columns are found by name; others, like the session of newer BurstGPT files, are left alone.
A row that does not say what it should is refused with its line number, never guessed at; all bad rows are told at once,
up to a limit. Azure rows are interactive and of tenant `trace`. BurstGPT rows take their tenant from the model and are
batch when they came over the API; those without a response failed when they were recorded and are left out.
"""

import csv
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from math import isfinite
from typing import Final

from llorch_scheduler.simulator.arrivals import Trace, TraceRow
from llorch_shared.identifiers import is_name
from llorch_shared.wire.task import Priority

TOLD_MAX: Final = 10
TOKENS_MAX: Final = 10_000_000

_AZURE: Final = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_BURSTGPT: Final = ("Timestamp", "Model", "Request tokens", "Response tokens", "Total tokens", "Log Type")
_LOGS: Final = {"Conversation log": Priority.INTERACTIVE, "API log": Priority.BATCH}


class TraceError(ValueError):
    """The file is not a trace that can be replayed; the message names the lines."""


class _BadRow(ValueError):
    """What is wrong with one row."""


_Reader = Callable[[Sequence[str]], TraceRow | None]


def read_trace(lines: Iterable[str], name: str) -> Trace:
    """The rows in order of time. Raises TraceError."""
    rows = csv.reader(lines)
    header = [cell.strip().removeprefix("\ufeff") for cell in next(rows, [])]
    columns = next((each for each in _READERS if set(each) <= set(header)), None)
    if columns is None:
        wanted = " or ".join(",".join(each) for each in _READERS)
        raise TraceError(f"{name}:1: the header is {','.join(header)!r}; wanted {wanted}")
    reader, places = _READERS[columns], [header.index(column) for column in columns]
    found: list[TraceRow] = []
    bad: list[str] = []
    count = 0
    for cells in rows:
        if not cells:
            continue
        try:
            if len(cells) != len(header):
                raise _BadRow(f"{len(cells)} columns instead of {len(header)}")
            row = reader([cells[place].strip() for place in places])
        except _BadRow as problem:
            count += 1
            if count <= TOLD_MAX:
                bad.append(f"{name}:{rows.line_num}: {problem}")
            continue
        if row is not None:
            found.append(row)
    if count:
        more = f"\nand {count - TOLD_MAX} more" if count > TOLD_MAX else ""
        raise TraceError("\n".join(bad) + more)
    if not found:
        raise TraceError(f"{name}: there is no row to replay")
    return _from_zero(found)


def _from_zero(rows: list[TraceRow]) -> Trace:
    rows.sort(key=lambda row: row.at_ms)
    first = rows[0].at_ms
    return Trace(tuple(TraceRow(row.at_ms - first, row.prompt, row.output, row.tenant, row.priority) for row in rows))


def _azure(cells: Sequence[str]) -> TraceRow:
    return TraceRow(_moment_ms(cells[0]), _tokens(cells[1]), max(1, _tokens(cells[2])), "trace", Priority.INTERACTIVE)


def _burstgpt(cells: Sequence[str]) -> TraceRow | None:
    try:
        at_ms = 1000 * float(cells[0])
    except ValueError:
        raise _BadRow(f"{cells[0]!r} is not a number of seconds") from None
    if not isfinite(at_ms):
        raise _BadRow(f"{cells[0]!r} is not a number of seconds")
    tenant = cells[1].lower().replace(" ", "-")
    if not is_name(tenant):
        raise _BadRow(f"{cells[1]!r} is not the name of a model")
    priority = _LOGS.get(cells[5])
    if priority is None:
        raise _BadRow(f"{cells[5]!r} is none of {', '.join(_LOGS)}")
    prompt, output, _total = (_tokens(cell) for cell in cells[2:5])
    return TraceRow(at_ms, prompt, output, tenant, priority) if output else None


_READERS: Final[dict[tuple[str, ...], _Reader]] = {_AZURE: _azure, _BURSTGPT: _burstgpt}


def _tokens(cell: str) -> int:
    if not cell.isascii() or not cell.isdigit() or int(cell) > TOKENS_MAX:
        raise _BadRow(f"{cell!r} is not a number of tokens")
    return int(cell)


def _moment_ms(cell: str) -> float:
    """Azure writes seven digits of a second, which is more than the standard library reads."""
    whole, dot, rest = cell.partition(".")
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    try:
        moment = datetime.fromisoformat(whole + rest[len(digits) :])
        fraction = float(f"0.{digits}") if dot else 0.0
    except ValueError:
        raise _BadRow(f"{cell!r} is not a date and time") from None
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return 1000 * (aware.timestamp() + fraction)
