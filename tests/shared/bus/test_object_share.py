"""What each tenant may have in the object store, on both buses."""

import asyncio

import pytest

from llorch_shared import object_remains, streams, subjects
from llorch_shared.bus.nats import connect
from llorch_shared.bus.port import Bus
from llorch_shared.object_share import COUNTED_MIN, ObjectShare, ShareFull
from llorch_shared.objects import Objects
from llorch_shared.settings import NatsSettings
from llorch_shared.wire.objects import CHUNK_BYTES
from support.nats_server import NatsServer

LARGE = bytes(range(256)) * (2 * CHUNK_BYTES // 256) + b"the rest"


@pytest.fixture
async def objects(bus: Bus) -> Objects:
    await bus.ensure(streams.base(token_bytes_max=16 * 1024 * 1024))
    return Objects(bus)


async def held(bus: Bus, tenant: str) -> int:
    return await ObjectShare(bus, 0).held(tenant)


async def test_a_tenant_has_a_share_and_the_others_have_theirs(objects: Objects, bus: Bus, other: Bus) -> None:
    small = Objects(bus, share_bytes=len(LARGE) + COUNTED_MIN)
    await small.put(LARGE, tenant="blue")
    await small.put(LARGE, tenant="blue")
    await small.put(b"a few bytes", tenant="blue")
    assert await held(other, "blue") == len(LARGE) + COUNTED_MIN
    with pytest.raises(ShareFull, match="tenant blue"):
        await small.put(b"more", tenant="blue")
    ref = await small.put(LARGE[1:], tenant="red")
    assert await objects.get(ref.digest) == LARGE[1:]
    await small.put(LARGE, tenant="red")
    assert await held(bus, "red") == len(LARGE) - 1, "what is there already counts to who put it first"
    assert await held(bus, "green") == 0


async def test_writers_at_once_stay_within_the_share_and_leave_nothing(objects: Objects, bus: Bus, other: Bus) -> None:
    """Through two connections, as two gateways: none of them sees the others before it begins."""
    sides = [Objects(side, share_bytes=2 * len(LARGE)) for side in (bus, other)]
    done = await asyncio.gather(
        *(sides[number % 2].put(bytes([number]) + LARGE[1:], tenant="blue") for number in range(6)),
        return_exceptions=True,
    )
    kept = [each for each in done if not isinstance(each, BaseException)]
    assert len(kept) <= 2
    assert all(isinstance(each, ShareFull) for each in done if each not in kept)
    assert await held(bus, "blue") == len(kept) * len(LARGE)
    assert (await bus.stream_state(streams.OBJECTS)).messages == 4 * len(kept)


async def test_what_a_killed_writer_left_counts_as_long_as_it_is_stored(objects: Objects, bus: Bus) -> None:
    left = await bus.store(subjects.object_chunks(f"blue.{3 * CHUNK_BYTES}-abc"), bytes(CHUNK_BYTES))
    assert await held(bus, "blue") == CHUNK_BYTES
    await bus.remove(streams.OBJECTS, left.seq)
    assert await held(bus, "blue") == 0


@pytest.mark.nats
async def test_what_killed_writers_left_makes_room_when_no_writer_can_be_at_it_any_more(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = await connect(NatsSettings(url=nats_server.url), name="test")
    await bus.ensure(streams.base(token_bytes_max=16 * 1024 * 1024))
    small = Objects(bus, share_bytes=5 * CHUNK_BYTES)
    ref = await small.put(LARGE, tenant="blue")
    cut_otherwise = CHUNK_BYTES + 1024
    await bus.store(subjects.object_chunks(f"blue.{cut_otherwise}-whole"), bytes(cut_otherwise))
    left = subjects.object_chunks(f"blue.{3 * CHUNK_BYTES}-left")
    for _ in range(2):
        await bus.store(left, bytes(CHUNK_BYTES))
    with pytest.raises(ShareFull):
        await small.put(b"more", tenant="blue")
    assert len(await bus.replay(streams.OBJECTS, left)) == 2, "somebody may be writing it"
    monkeypatch.setattr(object_remains, "LEFT_AFTER_MS", 0)
    await small.put(b"more", tenant="blue")
    assert not await bus.replay(streams.OBJECTS, left)
    assert await small.get(ref.digest) == LARGE
    assert await held(bus, "blue") == len(LARGE) + CHUNK_BYTES + COUNTED_MIN
    await bus.close()
