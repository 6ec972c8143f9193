"""Streams of a node that died, read back by another: many at once cost one walk of the server."""

import asyncio
from collections.abc import Collection, Sequence

import pytest

from llorch_shared import streams, subjects
from llorch_shared.bus.memory import MemoryBus, MemoryServer
from llorch_shared.bus.port import Message, Unanswered
from llorch_shared.shared_walks import SharedWalks

TASKS = [subjects.tokens("gw-1", f"t{number}") for number in range(40)]


class Counting(MemoryBus):
    """Counts the walks; each waits until it is let go."""

    def __init__(self, server: MemoryServer) -> None:
        super().__init__(server)
        self.walks: list[set[str]] = []
        self.far_s: list[float] = []
        self.go = asyncio.Event()
        self.broken: Exception | None = None

    async def gather(self, stream: str, subjects: Collection[str], *, within_s: float = 0) -> Sequence[Message]:
        self.walks.append(set(subjects))
        self.far_s.append(within_s)
        await self.go.wait()
        if self.broken is not None:
            raise self.broken
        return await super().gather(stream, subjects, within_s=within_s)


def texts(found: Sequence[Message]) -> list[bytes]:
    return [message.data for message in found]


async def opened() -> Counting:
    bus = Counting(MemoryServer())
    await bus.ensure(streams.base())
    for number in range(3):
        for subject in TASKS:
            bus.publish(subject, f"{subject} {number}".encode())
    await bus.flush()
    return bus


async def test_who_asks_during_a_walk_shares_the_next_one() -> None:
    bus = await opened()
    walks = SharedWalks(bus, streams.TOK)
    reads = [asyncio.create_task(walks.read(subject)) for subject in TASKS[:1]]
    while not bus.walks:
        await asyncio.sleep(0)
    reads += [asyncio.create_task(walks.read(subject)) for subject in TASKS[1:]]
    await asyncio.sleep(0)
    bus.go.set()
    for subject, read in zip(TASKS, reads, strict=True):
        assert texts(await read) == [f"{subject} {number}".encode() for number in range(3)]
    assert bus.walks == [set(TASKS[:1]), set(TASKS[1:])]


async def test_a_stream_of_which_nothing_is_stored_is_empty() -> None:
    bus = await opened()
    bus.go.set()
    assert await SharedWalks(bus, streams.TOK).read(subjects.tokens("gw-1", "none")) == ()


async def test_a_walk_that_fails_fails_for_those_who_shared_it_and_the_next_is_made() -> None:
    bus = await opened()
    walks = SharedWalks(bus, streams.TOK)
    bus.go.set()
    for broken in (Unanswered("gone"), KeyError("num_pending")):
        bus.broken = broken
        failed = await asyncio.gather(*map(walks.read, TASKS), return_exceptions=True)
        assert {type(error) for error in failed} == {type(broken)}
    bus.broken = None
    assert len(await walks.read(TASKS[0])) == 3


async def test_one_who_gives_up_does_not_keep_the_others_from_their_answer() -> None:
    bus = await opened()
    walks = SharedWalks(bus, streams.TOK)
    reads = [asyncio.create_task(walks.read(subject)) for subject in TASKS]
    while not bus.walks:
        await asyncio.sleep(0)
    reads[3].cancel()
    bus.go.set()
    with pytest.raises(asyncio.CancelledError):
        await reads[3]
    assert len(await reads[4]) == 3


async def test_several_who_ask_for_one_subject_have_one_answer() -> None:
    bus = await opened()
    walks = SharedWalks(bus, streams.TOK)
    reads = [asyncio.create_task(walks.read(TASKS[0])) for _ in range(3)]
    while not bus.walks:
        await asyncio.sleep(0)
    reads[0].cancel()
    bus.go.set()
    assert len(await reads[1]) == len(await reads[2]) == 3
    assert bus.walks == [{TASKS[0]}]


async def test_a_walk_begins_as_early_as_the_earliest_of_those_who_share_it_asks() -> None:
    bus = await opened()
    walks = SharedWalks(bus, streams.TOK)
    now = asyncio.get_running_loop().time()
    bus.go.set()
    await asyncio.gather(walks.read(TASKS[0], since=now - 20), walks.read(TASKS[1], since=now - 100))
    await asyncio.gather(walks.read(TASKS[0], since=now - 20), walks.read(TASKS[1]))
    assert 100 <= bus.far_s[0] < 200
    assert bus.far_s[1] == 0
