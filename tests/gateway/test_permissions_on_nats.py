"""A gateway whose user loses a permission while it runs: not ready and why, and ready again by itself."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from llorch_gateway.gateway import Gateway
from llorch_shared import streams, subjects
from llorch_shared.bus.nats import NatsBus, connect
from llorch_shared.bus.port import Denied
from llorch_shared.lifecycle import Stop
from llorch_shared.metrics import Metrics
from llorch_shared.settings import NatsSettings, Secret, Settings
from support.nats_server import NatsServer

pytestmark = pytest.mark.nats

ADMISSIONS = "llorch.adm.>"


def users(*, publish: str = "", subscribe: str = "") -> str:
    """What the gateway may not do."""
    denied = f'publish: {{ deny: "{publish or "no.such"}" }}, subscribe: {{ deny: "{subscribe or "no.such"}" }}'
    return (
        "authorization { users = [ { user: admin, password: a }\n"
        f"{{ user: gateway, password: g, permissions: {{ {denied} }} }} ] }}\n"
    )


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    made = NatsServer(tmp_path / "nats", extra=users())
    made.start()
    yield made
    made.stop()


@pytest.fixture
async def admin(server: NatsServer) -> AsyncIterator[NatsBus]:
    bus = await connect(NatsSettings(url=server.url, user="admin"), name="admin", password=Secret("a"))
    yield bus
    await bus.close()


@pytest.fixture
async def gateway(server: NatsServer) -> AsyncIterator[Gateway]:
    wanted = Settings(nats=NatsSettings(url=server.url, user="gateway"))
    metrics = Metrics()
    bus = await connect(wanted.nats, name="gateway", password=Secret("g"), metrics=metrics)
    made = Gateway(wanted, bus=bus, token=Secret(""), metrics=metrics)
    await made.start(Stop())
    yield made
    await made.close()
    await bus.close()


def change(server: NatsServer, extra: str) -> None:
    server.configure(extra)
    server.reload()


def refusals(gateway: Gateway) -> float:
    return gateway.metrics.registry.get_sample_value("bus_errors_total", {"kind": "permission"}) or 0


async def until(question: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not question():
            await asyncio.sleep(0.01)


async def test_who_may_no_longer_hear_is_not_ready_until_it_may(
    server: NatsServer, admin: NatsBus, gateway: Gateway
) -> None:
    assert gateway.not_ready() == ()
    change(server, users(subscribe="llorch.tok.>"))
    await until(lambda: any("llorch.tok." in reason for reason in gateway.not_ready()))
    assert refusals(gateway) >= 1
    assert gateway.metrics.registry.get_sample_value("bus_connected") == 0
    key = subjects.pool_key("late")
    await admin.store(subjects.spec(key), b'{"id":"late","engine":"mock","model":"mock:words"}')
    change(server, users())
    await until(lambda: gateway.not_ready() == ())
    await until(lambda: "late" in gateway.backend.snapshot.pools)


async def test_who_may_no_longer_publish_says_so_and_recovers(
    server: NatsServer, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llorch_shared.bus.nats_denials.DENIED_S", 0.5)
    bus = gateway._bus
    change(server, users(publish="llorch.can.>"))

    def told() -> bool:
        bus.publish(subjects.cancel_signal("task"), b"")
        return any("llorch.can.task" in reason for reason in gateway.not_ready())

    await until(told)
    assert refusals(gateway) >= 1
    with pytest.raises(Denied):
        await bus.request(subjects.cancel_signal("task"), b"", timeout_s=20)
    change(server, users())
    await until(lambda: gateway.not_ready() == ())
    assert bus.connected
    assert (await bus.stream_state(streams.RUN)).messages == 0
