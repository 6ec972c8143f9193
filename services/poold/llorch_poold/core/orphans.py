"""Which processes of an earlier life of this node are still ours to end: same pid and same start time, nothing else.

A pid alone is not enough: it may have been given to a stranger since.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec


class EngineProcess(msgspec.Struct, frozen=True, kw_only=True):
    """An engine as written to the state file. `start_ticks` is field 22 of /proc/<pid>/stat."""

    pid: int
    start_ticks: int
    replica_id: str


class Orphans(NamedTuple):
    end: tuple[EngineProcess, ...]
    gone: tuple[EngineProcess, ...]


def orphans(recorded: Iterable[EngineProcess], start_ticks: Mapping[int, int]) -> Orphans:
    """`start_ticks` holds the start time of every recorded pid that exists now."""
    end: list[EngineProcess] = []
    gone: list[EngineProcess] = []
    for process in recorded:
        alive = process.pid > 1 and start_ticks.get(process.pid) == process.start_ticks
        (end if alive else gone).append(process)
    return Orphans(tuple(end), tuple(gone))
