"""What a process does not load before it serves."""

import subprocess
import sys

import pytest


def loaded_by(program: str, *modules: str) -> set[str]:
    """Which of these modules a new interpreter has loaded when the program is through."""
    listing = f"{program}\nimport sys; print(*(name for name in {modules!r} if name in sys.modules))"
    ran = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True, timeout=60, check=True)
    return set(ran.stdout.split())


def test_what_runs_before_each_engine_loads_no_event_loop() -> None:
    assert loaded_by("import llorch_shared.with_parent", "ctypes", "asyncio", "uvloop") == {"ctypes"}


@pytest.mark.parametrize(
    ("url", "loaded"), [("nats://127.0.0.1:1", set[str]()), ("wss://127.0.0.1:1", {"aiohttp", "multidict"})]
)
def test_only_an_address_that_asks_for_websockets_loads_what_they_need(url: str, loaded: set[str]) -> None:
    program = f"""
from llorch_shared.bus.nats_client import client_options
from llorch_shared.settings import NatsSettings
from nats.aio import transport
client_options(NatsSettings(url={url!r}), None, "test")
assert bool(transport.aiohttp) is bool(transport.multidict) is {bool(loaded)}
"""
    assert loaded_by(program, "aiohttp", "multidict") == loaded
