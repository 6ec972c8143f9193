"""Fixtures that every folder of tests may use."""

import logging
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from support.nats_server import NatsServer
from support.workers import ByFile, name_apart, slow_first, speak_up


def pytest_configure(config: pytest.Config) -> None:
    """Each run asks the same examples, and none of them has a deadline: a machine may be busy."""
    hypothesis.settings.load_profile("ci")
    if hasattr(config, "workerinput"):
        speak_up(config)


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByFile:
    return ByFile(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    name_apart(items)
    if hasattr(config, "workerinput"):
        items[:] = slow_first(items)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return ("asyncio", {"use_uvloop": True})


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path / "nats")
    server.start()
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def root_log_level() -> Iterator[None]:
    """What a test sets for its process does not silence the next test."""
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)
