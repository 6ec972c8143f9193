"""A bucket in memory, following either kind of bus."""

import asyncio

import pytest

from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus, Message
from llorch_shared.live_table import LiveTable
from support.bus_worlds import NatsWorld, World, eventually

BASE = streams.base(token_bytes_max=16 * 1024 * 1024)


class Changes:
    def __init__(self) -> None:
        self.seen: list[tuple[str, bytes | None]] = []

    def __call__(self, key: str, value: bytes | None) -> None:
        self.seen.append((key, value))


@pytest.fixture
async def ready(bus: Bus) -> Bus:
    await bus.ensure(BASE)
    return bus


async def test_it_has_what_was_there_and_follows_what_comes(ready: Bus, other: Bus) -> None:
    await ready.store(subjects.registry("node.a"), b"1")
    changes = Changes()
    table = LiveTable(other, bucket="REG", changed=changes)
    await table.start()
    assert dict(table.values) == {"node.a": b"1"}
    second = await ready.store(subjects.registry("node.b"), b"2")
    await eventually(lambda: "node.b" in table.values)
    assert table.seq("node.b") == second.seq
    assert changes.seen == [("node.a", b"1"), ("node.b", b"2")]
    await table.close()


async def test_an_expired_key_goes_and_its_next_write_knows_what_to_expect(ready: Bus, other: Bus) -> None:
    changes = Changes()
    table = LiveTable(other, bucket="REG", changed=changes)
    await table.start()
    await ready.store(subjects.registry("lease.scheduler"), b"me", ttl_s=1)
    await eventually(lambda: ("lease.scheduler", None) in changes.seen)
    assert "lease.scheduler" not in table.values
    await ready.store(subjects.registry("lease.scheduler"), b"you", expect_seq=table.seq("lease.scheduler"))
    await eventually(lambda: table.values.get("lease.scheduler") == b"you")


async def test_desired_state_is_followed_too(ready: Bus, other: Bus) -> None:
    changes = Changes()
    table = LiveTable(other, bucket="SPEC", changed=changes)
    await table.start()
    await ready.store(subjects.spec(subjects.pool_key("p")), b"1")
    await ready.store(subjects.spec(subjects.pool_key("p")), b"2")
    await eventually(lambda: len(changes.seen) == 2)
    assert changes.seen == [("pool.p", b"1"), ("pool.p", b"2")]


async def test_after_a_restart_it_has_what_it_missed(world: World, ready: Bus, other: Bus) -> None:
    changes = Changes()
    table = LiveTable(other, bucket="REG", changed=changes)
    await table.start()
    await ready.store(subjects.registry("node.a"), b"1")
    await eventually(lambda: table.values.get("node.a") == b"1")
    world.kill()
    await eventually(lambda: not ready.connected and not other.connected)
    await asyncio.to_thread(world.start) if isinstance(world, NatsWorld) else world.start()
    first = await ready.store(subjects.registry("node.a"), b"2", timeout_s=20)
    await eventually(lambda: table.values.get("node.a") == b"2")
    assert table.seq("node.a") == first.seq


async def test_a_copy_that_lags_behind_takes_no_key_away(
    ready: Bus, other: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = Changes()
    table = LiveTable(other, bucket="REG", changed=changes)
    await table.start()
    await ready.store(subjects.registry("node.a"), b"1")
    await eventually(lambda: "node.a" in table.values)

    async def nothing(*_: object) -> list[Message]:
        return []

    monkeypatch.setattr(other, "snapshot", nothing)
    await table.refresh()
    assert table.values == {"node.a": b"1"}
    monkeypatch.setattr(other, "last", gone)
    await table.refresh()
    assert changes.seen == [("node.a", b"1"), ("node.a", None)]


async def gone(*_: object) -> None:
    return None
