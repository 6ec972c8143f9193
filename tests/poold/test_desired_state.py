"""What a node takes of the desired state."""

import msgspec

from llorch_poold import desired_state
from llorch_shared import streams, subjects
from llorch_shared.live_table import LiveTable
from llorch_shared.wire.desired import PoolDrain
from support.bus_worlds import MemoryWorld


async def test_a_wish_that_cannot_be_read_counts_as_absent_beside_those_that_can() -> None:
    bus = await MemoryWorld().connect()
    await bus.ensure(streams.base())
    drain = PoolDrain(pool_id="p1", requested_ms=1, deadline_ms=1_000)
    for pool, data in {
        "p1": msgspec.json.encode(drain),
        "p2": b'{"pool_id":"\xff"}',
        "p3": b'{"x":' + b"[" * 50_000,
        "p4": b"{",
    }.items():
        await bus.store(subjects.spec(subjects.drain_key(pool)), data)
    table = LiveTable(bus, bucket="SPEC", changed=lambda *_: None)
    await table.start()
    assert len(table.values) == 4
    assert desired_state.drains(table) == {"p1": drain}
    await table.close()
    await bus.close()
