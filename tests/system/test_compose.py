"""What `docker compose up` starts, as processes: users of the bus are made, and its own is enough for each service."""

import asyncio
import signal
import stat
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from llorch_ctl.bus_seeds import SEED
from llorch_shared.bus.nats import connect
from llorch_shared.settings import NatsSettings
from support.compose import Composed

pytestmark = [pytest.mark.system, pytest.mark.timeout(150)]

POOL = """
[[pools]]
id = "default"
engine = "mock"
model = "mock:words"
devices = "cpu"
provisioning = { mode = "external" }
"""
TOKEN = uuid.uuid4().hex
STAY = ("provisioner-ci", "scheduler", "gateway", "poold-ci")


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return ("asyncio", {"use_uvloop": True})


async def until(question: Callable[[], Awaitable[bool]], what: str) -> None:
    try:
        async with asyncio.timeout(30):
            while not await question():
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"waited 30 s for {what}") from None


@pytest.fixture(scope="module")
async def up(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Composed]:
    composed = Composed(tmp_path_factory.mktemp("composed"), secrets={"auth_token": TOKEN})
    (composed.root("pools") / "llorch.toml").write_text(POOL)
    try:
        composed.run("bus-users")
        composed.start("nats")
        await until(lambda: composed.healthy("nats"), "nats")
        for name in (*STAY, "pools"):
            composed.start(name)
        assert composed.processes["pools"].wait(30) == 0, composed.processes["pools"].tail()
        for name in STAY:
            await until(lambda name=name: composed.healthy(name), name)
        yield composed
    finally:
        composed.stop()


def seeds_seen_by(composed: Composed, name: str) -> set[str]:
    return {path.parent.name for path in (composed.root(name) / "users").glob(f"*/{SEED}")}


def all_seeds(composed: Composed) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in (composed.root("bus-users") / "users").glob(f"*/{SEED}")}


def forbidden(composed: Composed) -> list[str]:
    log = composed.processes["nats"].log_path.read_text()
    return [line for line in log.splitlines() if "Violation" in line or "authentication error" in line]


async def ask(composed: Composed) -> dict[str, Any]:
    body = {"model": "default", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5}
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {TOKEN}"}, timeout=30) as http:

        async def answered() -> bool:
            nonlocal reply
            reply = await http.post(f"{composed.url}/v1/chat/completions", json=body)
            return reply.status_code != 503

        reply: httpx.Response
        await until(answered, "a ready pool")
    assert reply.status_code == 200, reply.text
    said: dict[str, Any] = reply.json()
    return said


async def test_every_service_comes_up_with_its_own_seed_and_a_task_runs(up: Composed) -> None:
    assert (await ask(up))["usage"]["completion_tokens"] == 5
    up.run("orchctl", "status", "--json")
    assert forbidden(up) == []
    own = {name: seeds_seen_by(up, name) for name in (*STAY, "nats", "pools", "orchctl")}
    assert own == {
        "nats": set(),
        "gateway": {"gateway"},
        "scheduler": {"scheduler"},
        "provisioner-ci": {"provisioner-node-1"},
        "poold-ci": {"poold-node-1"},
        "pools": {"orchctl"},
        "orchctl": {"orchctl"},
    }
    told = (up.root("nats") / "bus" / "users.conf").read_text()
    told += "".join(path.read_text() for path in (up.folder / "logs").iterdir())
    for path, seed in all_seeds(up).items():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert seed.strip().decode() not in told


async def test_the_next_start_keeps_the_seeds_and_a_node_more_is_one_command(up: Composed) -> None:
    before = all_seeds(up)
    up.run("bus-users", "--node", "node-2")
    after = all_seeds(up)
    assert {path.parent.name for path in after.keys() - before.keys()} == {"poold-node-2", "provisioner-node-2"}
    assert before.items() <= after.items()
    up.processes["nats"].signal(signal.SIGHUP)
    seed = up.root("bus-users") / "users" / "poold-node-2" / SEED
    settings = NatsSettings(url=up.addressed("nats", "nats://nats:4222"), nkey_seed_file=str(seed))
    async with asyncio.timeout(30):
        newcomer = await connect(settings, name="poold/node-2")
    await newcomer.close()
    await ask(up)
