"""How the tests are dealt out to several worker processes (`make test`).

A file of tests stays whole on one worker: what its fixtures start is started once, and tests that build on each other
keep their order. Files that wait for real processes go out first, so that the quick ones fill the end. Those that load
the whole machine follow each other on one worker, and so do those that share the cache of engines.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest
from _pytest.config import create_terminal_writer
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

HEAVY: Final = (
    "tests/system/test_rolling.py",
    "tests/chaos/test_short_run.py",
    "tests/chaos/test_short_drill.py",
    "tests/system/test_shares.py",
    "tests/system/test_cluster.py",
    "tests/system/test_readers.py",
)
"""A dozen processes, hundreds of readers, or shares of time that are compared."""

REAL: Final = ("tests/system/test_real_engine.py", "tests/system/test_real_results.py")
"""They keep the engine and its model in one folder, which one provisioner at a time owns."""


class ByFile(LoadFileScheduling):
    """Files in the order in which they were collected, the heavy ones as if they were one, the real ones, too."""

    def __init__(self, config: pytest.Config, log: object) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        file = str(super()._split_scope(nodeid))
        return "heavy" if file in HEAVY else "real" if file in REAL else file

    def add_node_collection(self, node: WorkerController, collection: Sequence[str]) -> None:
        """Tests are dealt out by their ids: of several with one id only one would run."""
        twins = [nodeid for nodeid, times in Counter(collection).items() if times > 1]
        if twins:
            raise pytest.UsageError(f"more than one test has the id {twins[0]}")
        super().add_node_collection(node, collection)

    def remove_node(self, node: WorkerController) -> str | None:
        """A worker is gone. The test in which it died (of a timeout, most likely) has failed and is not begun again."""
        for unit in self.assigned_work[node].values():
            for nodeid, done in unit.items():
                if not done:
                    unit[nodeid] = True
                    super().remove_node(node)
                    return nodeid
        super().remove_node(node)
        return None


def speak_up(config: pytest.Config) -> None:
    """What a timeout prints before it ends the worker (stacks, captured output) is seen: a worker's standard output
    goes nowhere, its standard error is that of the whole run."""
    config.get_terminal_writer = lambda: create_terminal_writer(config, sys.__stderr__)  # type: ignore[method-assign]


def name_apart(items: Sequence[pytest.Item]) -> None:
    """Each of the tests that schemathesis generates of one function gets an id of its own."""
    count = Counter(item.nodeid for item in items)
    for item in items:
        if count[item.nodeid] > 1:
            item._id = item.id.with_params(item.name.partition("[")[2].removesuffix("]"))


def slow_first(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Whole files: heavy ones, then by what their slowest test starts; otherwise the order stays."""
    rank: dict[Path, int] = {}
    for item in items:
        rank[item.path] = min(rank.get(item.path, 9), _rank(item))
    return sorted(items, key=lambda item: rank[item.path])


def _rank(item: pytest.Item) -> int:
    if item.nodeid.partition("::")[0] in HEAVY:
        return 0
    for rank, mark in enumerate(("engine", "system", "nats"), start=1):
        if item.get_closest_marker(mark):
            return rank
    return 4
