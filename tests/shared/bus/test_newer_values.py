"""A bucket in which a newer release writes, read by this one."""

import msgspec

from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus
from llorch_shared.live_table import LiveTable
from llorch_shared.metrics import Metrics
from llorch_shared.wire.version import VERSION_HEADER, VERSIONS
from support.bus_worlds import eventually

NEWER = {VERSION_HEADER: str(max(VERSIONS.values()) + 1)}


async def test_a_newer_registry_value_counts_as_absent_and_a_newer_wish_changes_nothing(bus: Bus, other: Bus) -> None:
    await bus.ensure(streams.base())
    changes: list[tuple[str, bytes | None]] = []
    metrics = Metrics()
    registry = LiveTable(bus, bucket="REG", changed=lambda *change: changes.append(change), metrics=metrics)
    wishes = LiveTable(bus, bucket="SPEC", changed=lambda *change: changes.append(change), metrics=metrics)
    key, pool = "node.n1", subjects.pool_key("p1")
    await other.store(subjects.registry(key), b"1")
    await other.store(subjects.spec(pool), b"1")
    await registry.start()
    await wishes.start()
    assert changes == [(key, b"1"), (pool, b"1")]
    for _ in range(3):
        newer = await other.store(subjects.registry(key), b"tomorrow", headers=NEWER)
    await other.store(subjects.spec(pool), b"tomorrow", headers=NEWER)
    await eventually(lambda: registry.seq(key) == newer.seq and wishes.is_newer(pool))
    assert changes[2:] == [(key, None)]
    assert (dict(registry.values), dict(wishes.values)) == ({}, {pool: b"1"})
    assert registry.is_newer(key)
    assert metrics.registry.get_sample_value("messages_ignored_total", {"kind": "registry"}) == 3
    back = await other.store(subjects.registry(key), msgspec.json.encode({}), headers={VERSION_HEADER: "1"})
    await eventually(lambda: registry.seq(key) == back.seq)
    assert not registry.is_newer(key)
    assert changes[3:] == [(key, b"{}")]
