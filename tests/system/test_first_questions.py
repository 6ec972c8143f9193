"""A service whose bus fails it while it starts: each thing that it asks for is refused once. It waits, says what is in
the way, and serves."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import llorch_gateway.service
import llorch_poold.service
import llorch_provisioner.service
import llorch_scheduler.service
from llorch_shared import streams, subjects
from llorch_shared.bus import patience
from llorch_shared.bus.memory import MemoryBus, MemoryServer
from llorch_shared.bus.port import (
    BusError,
    Handler,
    Message,
    NoStream,
    RawHandler,
    Responder,
    StreamState,
    Subscription,
    Unanswered,
)
from llorch_shared.bus.topology import Topology
from llorch_shared.lifecycle import Stop
from llorch_shared.settings import GatewaySettings, PooldSettings, ProvisionerSettings, Secret, Settings

DEADLINE_S = 30.0
NO_SECRET = Secret("")


class RefusingBus(MemoryBus):
    """Refuses each question once, as a server whose streams have no leaders yet."""

    def __init__(self, server: MemoryServer) -> None:
        super().__init__(server, name="refused")
        self.refused: set[tuple[str, str]] = set()

    def _refuse(self, what: str, name: str, error: type[BusError]) -> None:
        if (what, name) not in self.refused:
            self.refused.add((what, name))
            raise error(f"{what} {name}: the server is starting")

    async def ensure(self, topology: Topology) -> None:
        self._refuse("ensure", topology.streams[0].name if topology.streams else "", NoStream)
        await super().ensure(topology)

    async def subscribe(self, subject: str, handler: Handler) -> Subscription:
        self._refuse("subscribe", subject, Unanswered)
        return await super().subscribe(subject, handler)

    async def tail(self, subject: str, handler: RawHandler) -> Subscription:
        self._refuse("tail", subject, Unanswered)
        return await super().tail(subject, handler)

    async def serve(
        self, subject: str, responder: Responder, *, queue: str = "", concurrency: int = 64
    ) -> Subscription:
        self._refuse("serve", subject, Unanswered)
        return await super().serve(subject, responder, queue=queue, concurrency=concurrency)

    async def snapshot(self, stream: str, subject_filter: str) -> Sequence[Message]:
        self._refuse("snapshot", stream, NoStream)
        return await super().snapshot(stream, subject_filter)

    async def stream_state(self, stream: str) -> StreamState:
        self._refuse("state", stream, Unanswered)
        return await super().stream_state(stream)

    def twice(self) -> list[str]:
        """What somebody listens to more than once on this connection."""
        heard = [interest.pattern for interest in self.server.interests if interest.bus is self]
        return sorted({pattern for pattern in heard if heard.count(pattern) > 1})


Serve = Callable[[Settings, Stop], Awaitable[int]]

SERVICES: Mapping[str, tuple[Any, Serve]] = {
    "poold": (
        llorch_poold.service.nats,
        lambda settings, stop: llorch_poold.service.serve(settings, {}, NO_SECRET, stop),
    ),
    "gateway": (
        llorch_gateway.service.nats,
        lambda settings, stop: llorch_gateway.service.run(settings, NO_SECRET, stop),
    ),
    "scheduler": (llorch_scheduler.service, llorch_scheduler.service.main),
    "provisioner": (
        llorch_provisioner.service,
        lambda settings, stop: llorch_provisioner.service.run(settings, {}, NO_SECRET, stop),
    ),
}


def wanted(folder: Path) -> Settings:
    return Settings(
        profile="ci",
        state_dir=str(folder / "state"),
        gateway=GatewaySettings(addr="127.0.0.1:0", drain_ms=0),
        poold=PooldSettings(node_id="node-1"),
        provisioner=ProvisionerSettings(cache_dir=str(folder / "cache")),
    )


def serves(name: str, bus: RefusingBus, caplog: pytest.LogCaptureFixture) -> bool:
    """By what it did last."""
    if name == "provisioner":
        return any(each.pattern == subjects.provision_status("node-1") for each in bus.server.interests)
    if name == "scheduler":
        stream = bus.server.streams.get(streams.REG)
        return stream is not None and any(stream.select(subjects.registry("scheduler.*")))
    action = {"poold": "node.started", "gateway": "serve"}[name]
    return any(getattr(record, "action", "") == action for record in caplog.records)


def begun(
    name: str, bus: RefusingBus, folder: Path, monkeypatch: pytest.MonkeyPatch, stop: Stop
) -> "asyncio.Future[int]":
    async def connect(*_: object, **__: object) -> RefusingBus:
        return bus

    module, serve = SERVICES[name]
    monkeypatch.setattr(module, "connect", connect)
    return asyncio.ensure_future(serve(wanted(folder), stop))


@pytest.mark.parametrize("name", sorted(SERVICES))
async def test_a_service_whose_bus_refuses_each_question_once_starts_all_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(patience, "PAUSE_FIRST_S", 0.001)
    monkeypatch.setattr(patience, "PAUSE_MAX_S", 0.001)
    caplog.set_level(logging.INFO)
    server = MemoryServer()
    await MemoryBus(server).ensure(streams.base())
    bus = RefusingBus(server)
    stop = Stop()
    serving = begun(name, bus, tmp_path, monkeypatch, stop)
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not serves(name, bus, caplog):
                if serving.done():
                    serving.result()
                    raise AssertionError("it ended instead of serving")
                await asyncio.sleep(0.005)
        assert not bus.twice()
    finally:
        stop.wish("the test is over")
        code = await asyncio.wait_for(serving, DEADLINE_S)
    assert code == 0
    assert "the server is starting" in caplog.text
    assert len(bus.refused) > 3


@pytest.mark.parametrize("name", sorted(SERVICES))
async def test_a_service_that_waits_for_its_bus_stops_when_asked_to(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(patience, "PAUSE_FIRST_S", 600.0)
    server = MemoryServer()
    await MemoryBus(server).ensure(streams.base())
    bus = RefusingBus(server)
    bus.refused.add(("ensure", streams.base().streams[0].name))
    stop = Stop()
    serving = begun(name, bus, tmp_path, monkeypatch, stop)
    async with asyncio.timeout(DEADLINE_S):
        while "the server is starting" not in caplog.text:
            await asyncio.sleep(0.005)
        stop.wish("the test is over")
        assert await serving == 0
