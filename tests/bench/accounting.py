"""CPU seconds and memory of processes, from /proc."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int) -> float:
    """User and system time of one process, all its threads, not its children. 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS


def resident_mb(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE / 1e6
    except OSError:
        return 0.0


class Meter:
    """CPU used between `start` and `stop`, by role."""

    def __init__(self, roles: Mapping[str, Iterable[int]]) -> None:
        self._roles: Final = {role: tuple(pids) for role, pids in roles.items()}
        self._before: dict[str, float] = {}

    def start(self) -> None:
        self._before = {role: sum(map(cpu_seconds, pids)) for role, pids in self._roles.items()}

    def stop(self) -> dict[str, float]:
        return {role: sum(map(cpu_seconds, pids)) - self._before[role] for role, pids in self._roles.items()}

    def resident(self) -> dict[str, float]:
        return {role: sum(map(resident_mb, pids)) for role, pids in self._roles.items()}
