"""A term whose lease was not renewed in time is over for everybody, whatever comes after."""

import time
from typing import Any

from llorch_scheduler.lease import NOT_RENEWED, Lease, Term
from llorch_shared import streams
from llorch_shared.bus.memory import MemoryBus, MemoryServer
from llorch_shared.bus.port import Stored
from llorch_shared.live_table import LiveTable

TTL_S = 1.0


class StandsStill(MemoryBus):
    """Its process gets no CPU between the server's answer to a renewal and reading it."""

    async def store(self, *arguments: Any, **options: Any) -> Stored:
        stored = await super().store(*arguments, **options)
        if options.get("expect_seq"):
            time.sleep(TTL_S)
        return stored


async def test_a_renewal_that_is_read_too_late_does_not_bring_the_term_back() -> None:
    bus = StandsStill(MemoryServer(), name="scheduler")
    await bus.ensure(streams.base())
    registry = LiveTable(bus, bucket="REG", changed=lambda key, value: None)
    await registry.start()
    lease = Lease(bus, registry, shard=1, holder="a", ttl_s=TTL_S)
    term = await lease.acquire()
    assert term is not None
    assert term.active
    await lease.keep(term)
    assert (term.active, term.reason) == (False, NOT_RENEWED)
    await bus.close()


def test_who_sees_that_the_time_is_over_ends_the_term_for_all() -> None:
    term = Term(1, 1, 1, fence_at=time.monotonic() - 1)
    assert not term.active
    term.fence_at = time.monotonic() + 60
    assert not term.active
    assert term.reason == NOT_RENEWED
