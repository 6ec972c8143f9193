"""A node that does not understand what the pool is wanted to be leaves its reload to those that do."""

from types import SimpleNamespace
from typing import Any, cast

import msgspec

from llorch_poold.node_context import NodeContext
from llorch_poold.reloads import Reloads
from llorch_shared import streams, subjects
from llorch_shared.live_table import LiveTable
from llorch_shared.wire.desired import PoolReload, ReloadState
from llorch_shared.wire.version import VERSION_HEADER
from support.bus_worlds import MemoryWorld
from support.node_harness import mock_pool


async def test_a_pool_that_a_newer_release_wrote_is_not_written_over() -> None:
    bus = await MemoryWorld().connect()
    await bus.ensure(streams.base())
    pool = mock_pool()
    reload = PoolReload(
        id="r1",
        pool_id=pool.id,
        new_model_ref="mock:other",
        old_model_ref=pool.model,
        state=ReloadState.UNDERWAY,
        requested_ms=1,
        deadline_ms=1,
    )
    pool_subject, reload_subject = (subjects.spec(of(pool.id)) for of in (subjects.pool_key, subjects.reload_key))
    await bus.store(pool_subject, msgspec.json.encode(pool))
    await bus.store(reload_subject, msgspec.json.encode(reload))
    specs = LiveTable(bus, bucket="SPEC", changed=lambda *_: None)
    await specs.start()
    newer = await bus.store(pool_subject, b'{"id":"?"}', headers={VERSION_HEADER: "999"})
    await specs.refresh()
    audit: Any = SimpleNamespace(record=None)
    context = SimpleNamespace(bus=bus, node_id="n1", audit=audit)
    reloads = Reloads(cast("NodeContext", context), specs)
    await reloads._decide(reloads.underway)
    told = [await bus.last(streams.SPEC, subject) for subject in (pool_subject, reload_subject)]
    assert [each.seq for each in told if each is not None] == [newer.seq, newer.seq - 1]
    await bus.close()
