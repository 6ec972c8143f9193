"""poold as a process: it serves, ends cleanly, and clears up after a life that did not."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgspec
import pytest

from llorch_poold.adapters.launch import plan_launch
from llorch_poold.adapters.port import EngineBroke
from llorch_poold.core.devices import CPU
from llorch_poold.core.orphans import EngineProcess
from llorch_poold.engine_life import EngineLife
from llorch_poold.process import EngineProcesses, NoPort, free_port, start_ticks
from llorch_shared import streams, subjects
from llorch_shared.bus import nats
from llorch_shared.bus.nats import NatsBus
from llorch_shared.settings import NatsSettings
from llorch_shared.wire.registry import NODE_DECODER, REPLICA_DECODER, ReplicaState
from support.nats_server import NatsServer
from support.node_harness import mock_pool

pytestmark = pytest.mark.nats


@pytest.fixture
async def bus(nats_server: NatsServer) -> AsyncIterator[NatsBus]:
    connected = await nats.connect(NatsSettings(url=nats_server.url), name="test")
    await connected.ensure(streams.base())
    await connected.store(subjects.spec(subjects.pool_key("mock")), msgspec.json.encode(mock_pool()))
    yield connected
    await connected.close()


def start(server: NatsServer, folder: Path) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "LLORCH_PROFILE": "ci",
        "LLORCH_STATE_DIR": str(folder),
        "NATS_URL": server.url,
    }
    return subprocess.Popen([sys.executable, "-m", "llorch_poold"], env=environment)


async def until_ready(bus: NatsBus, *, other_than: str = "") -> str:
    """The incarnation of the ready replica."""
    async with asyncio.timeout(60):
        while True:
            message = await bus.last(streams.REG, subjects.registry("replica.node-1.mock-node-1-1"))
            if message is not None and not message.deleted:
                record = REPLICA_DECODER.decode(message.data)
                if record.state is ReplicaState.READY and record.incarnation != other_than:
                    return record.incarnation
            await asyncio.sleep(0.05)


def children(pid: int) -> list[int]:
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def test_sigterm_ends_it_cleanly_with_its_engine(nats_server: NatsServer, bus: NatsBus, tmp_path: Path) -> None:
    poold = start(nats_server, tmp_path / "state")
    await until_ready(bus)
    engines = children(poold.pid)
    node = await bus.last(streams.REG, subjects.registry("node.node-1"))
    assert node is not None
    address = NODE_DECODER.decode(node.data).metrics_addr
    async with httpx.AsyncClient() as http:
        assert "tokens_out_total" in (await http.get(f"http://{address}/metrics")).text
    poold.terminate()
    assert await asyncio.to_thread(poold.wait, 60) == 0
    assert len(engines) == 1
    assert start_ticks(engines[0]) is None


async def test_a_killed_node_takes_its_engine_with_it_and_comes_back(
    nats_server: NatsServer, bus: NatsBus, tmp_path: Path
) -> None:
    poold = start(nats_server, tmp_path / "state")
    first = await until_ready(bus)
    (engine,) = children(poold.pid)
    poold.kill()
    await asyncio.to_thread(poold.wait, 60)
    async with asyncio.timeout(15):
        while start_ticks(engine) is not None:
            await asyncio.sleep(0.02)
    again = start(nats_server, tmp_path / "state")
    await until_ready(bus, other_than=first)
    again.terminate()
    assert await asyncio.to_thread(again.wait, 60) == 0


async def test_an_engine_is_bound_to_this_node_from_the_fork_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node killed while its engine's interpreter still starts must not leave it behind."""
    started: list[str] = []

    async def refuse(*argv: str, **_: object) -> None:
        started.extend(argv)
        raise OSError("not in this test")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse)
    launch = plan_launch(mock_pool(), device=CPU, port=1, engine=None, model=None, environment={})
    with pytest.raises(OSError, match="not in this test"):
        await EngineProcesses(tmp_path, "node-1").spawn("r-1", launch)
    assert started[2:5] == ["-m", "llorch_shared.with_parent", f"--parent={os.getpid()}"]
    assert tuple(started[5:]) == launch.argv


async def test_an_orphan_of_an_earlier_life_is_ended_and_a_stranger_is_not(
    nats_server: NatsServer, bus: NatsBus, tmp_path: Path
) -> None:
    orphan = subprocess.Popen(["sleep", "600"], start_new_session=True)
    stranger = subprocess.Popen(["sleep", "600"], start_new_session=True)
    recorded = [
        EngineProcess(pid=orphan.pid, start_ticks=start_ticks(orphan.pid) or 0, replica_id="mock-node-1-1"),
        EngineProcess(pid=stranger.pid, start_ticks=1, replica_id="mock-node-1-2"),
    ]
    state = tmp_path / "state"
    state.mkdir()
    (state / "poold-node-1.json").write_bytes(msgspec.json.encode(recorded))
    poold = start(nats_server, state)
    try:
        assert await asyncio.to_thread(orphan.wait, 60) == -signal.SIGKILL
        await until_ready(bus)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()
        poold.terminate()
        await asyncio.to_thread(poold.wait, 60)


async def test_a_port_that_another_engine_holds_is_not_ours(tmp_path: Path) -> None:
    """Same model, same address: only the listening socket tells the two apart."""
    processes = EngineProcesses(tmp_path, "node-1")
    spec = mock_pool()
    launch = plan_launch(spec, device=CPU, port=free_port(), engine=None, model=None, environment=os.environ)
    ours = await EngineLife.start(processes, "r-1", launch)
    other = None
    try:
        await ours.until_ready(spec, 60, lambda said: None)
        other = await EngineLife.start(processes, "r-2", launch)
        with pytest.raises(EngineBroke, match="address already in use"):
            await other.until_ready(spec, 60, lambda said: None)
        assert free_port(launch.port, taken=[launch.port + 1]) > launch.port + 1
        with pytest.raises(NoPort, match=f"no free port among {launch.port}, {launch.port + 1}"):
            free_port(among=[launch.port, launch.port + 1], taken=[launch.port + 1])
    finally:
        await ours.end()
        if other is not None:
            await other.end()


async def test_an_engine_starts_and_ends_where_the_state_file_cannot_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "poold-node-1.new").mkdir()
    processes = EngineProcesses(tmp_path, "node-1")
    launch = plan_launch(mock_pool(), device=CPU, port=free_port(), engine=None, model=None, environment=os.environ)
    child = await EngineLife.start(processes, "r-1", launch)
    await child.end()
    assert "poold-node-1.json cannot be written" in caplog.text
