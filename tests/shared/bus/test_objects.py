"""The object store on both buses: the same bytes are one object, whole or not at all; the clients of NATS read it."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import nats
import pytest

from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus, Full, Stored
from llorch_shared.bus.topology import Stream, Topology
from llorch_shared.object_share import ObjectShare
from llorch_shared.objects import ObjectDamaged, ObjectMissing, Objects, ObjectTooLarge
from llorch_shared.wire.objects import CHUNK_BYTES, ENTRY_DECODER, OBJECT_BYTES_MAX
from support.bus_worlds import NatsWorld
from support.nats_server import NatsServer

LARGE = bytes(range(256)) * (2 * CHUNK_BYTES // 256) + b"the rest"


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.fixture
async def objects(bus: Bus) -> Objects:
    await bus.ensure(streams.base(token_bytes_max=16 * 1024 * 1024))
    return Objects(bus)


@pytest.mark.parametrize("data", [b"", b"small", LARGE])
async def test_what_was_put_is_read_back_under_its_digest(objects: Objects, data: bytes) -> None:
    ref = await objects.put(data)
    assert (ref.digest, ref.bytes) == (digest(data), len(data))
    assert await objects.get(ref.digest) == data


async def test_the_same_bytes_are_one_object_whoever_puts_them(objects: Objects, bus: Bus, other: Bus) -> None:
    await asyncio.gather(*(side.put(LARGE) for side in (objects, Objects(other), objects, Objects(other))))
    await objects.put(LARGE)
    assert (await bus.stream_state(streams.OBJECTS)).messages == 3 + 1
    assert await Objects(other).get(digest(LARGE)) == LARGE


async def test_what_was_never_stored_is_missing(objects: Objects) -> None:
    with pytest.raises(ObjectMissing):
        await objects.get(digest(b"x"))


async def test_an_object_of_which_a_part_is_gone_is_missing(objects: Objects, bus: Bus) -> None:
    ref = await objects.put(LARGE)
    first = (await bus.replay(streams.OBJECTS, subjects.ALL_OBJECT_CHUNKS))[0]
    await bus.remove(streams.OBJECTS, first.seq)
    with pytest.raises(ObjectMissing):
        await objects.get(ref.digest)


async def test_other_bytes_under_a_digest_are_not_given_out(objects: Objects, bus: Bus) -> None:
    ref = await objects.put(b"what was meant")
    found = await bus.last(streams.OBJECTS, subjects.object_entry(ref.digest))
    assert found is not None
    false = await objects.put(b"something else")
    entry = await bus.last(streams.OBJECTS, subjects.object_entry(false.digest))
    assert entry is not None
    await bus.store(found.subject, entry.data, headers={"Nats-Rollup": "sub"})
    with pytest.raises(ObjectDamaged, match="another digest"):
        await objects.get(ref.digest)
    for garbage in (b"{", b'{"name":"x","nuid":"*","size":3}'):
        await bus.store(found.subject, garbage, headers={"Nats-Rollup": "sub"})
        with pytest.raises(ObjectDamaged):
            await objects.get(ref.digest)


async def test_sizes_are_bounded_at_both_ends(objects: Objects) -> None:
    with pytest.raises(ValueError, match="at most"):
        await objects.put(bytes(OBJECT_BYTES_MAX + 1))
    ref = await objects.put(b"four")
    with pytest.raises(ObjectTooLarge):
        await objects.get(ref.digest, bytes_max=3)


async def test_a_full_store_refuses_and_keeps_no_part(bus: Bus) -> None:
    config = next(stream.config for stream in streams.base().streams if stream.name == streams.OBJECTS)
    small = Stream(name=streams.OBJECTS, config={**config, "max_bytes": 2 * CHUNK_BYTES})
    await bus.ensure(Topology(streams=(small,)))
    objects = Objects(bus)
    with pytest.raises(Full):
        await objects.put(LARGE)
    assert (await bus.stream_state(streams.OBJECTS)).messages == 0
    await objects.put(b"small")


class Contended:
    """The bus of a writer before whom another writes the entry, as often as `others` says."""

    def __init__(self, bus: Bus, *others: Callable[[str], Awaitable[object]]) -> None:
        self._bus = bus
        self._others = list(others)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    async def store(self, subject: str, data: bytes, **given: Any) -> Stored:
        if given.get("expect_seq") is not None and self._others:
            await self._others.pop(0)(subject)
        return await self._bus.store(subject, data, **given)


async def test_an_entry_that_is_deleted_meanwhile_is_written_again(objects: Objects, bus: Bus) -> None:
    async def forgotten(subject: str) -> None:
        entry = msgspec.json.encode({"name": "x", "deleted": True})
        await bus.store(subject, entry, headers={"Nats-Rollup": "sub"})

    contended: Any = Contended(bus, forgotten, forgotten)
    ref = await Objects(contended).put(LARGE)
    assert await objects.get(ref.digest) == LARGE


async def test_an_entry_that_another_wrote_meanwhile_is_enough(objects: Objects, bus: Bus) -> None:
    async def written(_subject: str) -> None:
        await objects.put(LARGE)

    contended: Any = Contended(bus, written)
    ref = await Objects(contended).put(LARGE, tenant="blue")
    assert await objects.get(ref.digest) == LARGE
    assert (await bus.stream_state(streams.OBJECTS)).messages == 3 + 1
    assert await ObjectShare(bus, 0).held("blue") == 0


async def test_an_entry_of_ours_whose_answer_was_lost_keeps_its_chunks(objects: Objects, bus: Bus) -> None:
    """Its own entry is what a repeat finds in its way, when the server no longer knows its message id."""

    class Forgetful(Contended):
        async def store(self, subject: str, data: bytes, **given: Any) -> Stored:
            if given.get("expect_seq") is not None:
                await self._bus.store(subject, data, **{**given, "msg_id": ""})
            return await self._bus.store(subject, data, **given)

    forgetful: Any = Forgetful(bus)
    ref = await Objects(forgetful).put(LARGE)
    assert await objects.get(ref.digest) == LARGE


@pytest.mark.nats
async def test_clients_of_nats_read_our_objects_and_we_read_theirs(nats_server: NatsServer) -> None:
    world = NatsWorld(nats_server)
    bus = await world.connect()
    client = await nats.connect(nats_server.url)
    try:
        await bus.ensure(streams.base(token_bytes_max=16 * 1024 * 1024))
        objects = Objects(bus)
        ref = await objects.put(LARGE, tenant="blue")
        store = await client.jetstream().object_store(subjects.OBJECT_BUCKET)
        read = await store.get(subjects.object_name(ref.digest))
        assert read.data == LARGE
        assert (read.info.size, read.info.chunks) == (len(LARGE), 3)
        theirs = b"put with a client of NATS"
        await store.put(subjects.object_name(digest(theirs)), theirs)
        assert await objects.get(digest(theirs)) == theirs
        await store.delete(subjects.object_name(digest(theirs)))
        with pytest.raises(ObjectMissing):
            await objects.get(digest(theirs))
        await objects.put(theirs)
        assert await objects.get(digest(theirs)) == theirs
    finally:
        await client.close()
        await bus.close()


async def test_an_entry_is_written_as_the_clients_of_nats_write_it(objects: Objects, bus: Bus) -> None:
    ref = await objects.put(b"x")
    found = await bus.last(streams.OBJECTS, subjects.object_entry(ref.digest))
    assert found is not None
    entry = ENTRY_DECODER.decode(found.data)
    assert entry.name == ref.digest.replace(":", "-")
    assert entry.digest.startswith("SHA-256=")
    assert entry.digest.endswith("=")
    assert msgspec.json.decode(found.data)["options"] == {"max_chunk_size": CHUNK_BYTES}
