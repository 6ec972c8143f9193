"""The proxy between a process and the bus forwards bytes, and can be cut, stalled and slowed."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from support.link import Link
from support.nats_server import free_port

PATIENCE_S = 30


@contextlib.asynccontextmanager
async def echo_behind_a_link() -> AsyncIterator[Link]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    link = Link(free_port(), server.sockets[0].getsockname()[1])
    await link.start()
    try:
        yield link
    finally:
        await link.close()
        server.close()


class Caller:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, link: Link) -> "Caller":
        return cls(*await asyncio.open_connection("127.0.0.1", link.port))

    async def echoed(self, data: bytes) -> bytes:
        self.writer.write(data)
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.readexactly(len(data))


async def test_a_whole_link_forwards_bytes_both_ways() -> None:
    async with echo_behind_a_link() as link:
        caller = await Caller.to(link)
        block = bytes(range(256)) * 4096
        assert await caller.echoed(block) == block


async def test_what_was_sent_before_the_end_arrives() -> None:
    async with echo_behind_a_link() as link:
        caller = await Caller.to(link)
        link.slow(0.05)
        caller.writer.write(b"last words")
        caller.writer.write_eof()
        async with asyncio.timeout(PATIENCE_S):
            assert await caller.reader.read() == b"last words"


async def test_a_cut_breaks_connections_and_refuses_new_ones_until_mended() -> None:
    async with echo_behind_a_link() as link:
        caller = await Caller.to(link)
        assert await caller.echoed(b"one") == b"one"
        link.cut()
        with pytest.raises((asyncio.IncompleteReadError, OSError)):
            await caller.echoed(b"two")
        with pytest.raises((asyncio.IncompleteReadError, OSError)):
            await (await Caller.to(link)).echoed(b"three")
        link.mend()
        assert await (await Caller.to(link)).echoed(b"four") == b"four"


async def test_a_stalled_link_breaks_nothing_and_delivers_later_in_order() -> None:
    async with echo_behind_a_link() as link:
        caller = await Caller.to(link)
        link.stall()
        reply = asyncio.create_task(caller.echoed(b"one"))
        more = asyncio.create_task(asyncio.sleep(0.1))
        done, _ = await asyncio.wait({reply, more}, return_when=asyncio.FIRST_COMPLETED)
        assert done == {more}
        link.mend()
        assert await reply == b"one"
        assert await caller.echoed(b"two") == b"two"


async def test_a_slow_link_delays_each_way() -> None:
    async with echo_behind_a_link() as link:
        caller = await Caller.to(link)
        link.slow(0.1)
        began = time.monotonic()
        assert await caller.echoed(b"one") == b"one"
        assert time.monotonic() - began >= 0.2
        link.mend()


async def test_a_server_that_is_away_looks_as_if_nobody_listened() -> None:
    link = Link(free_port(), free_port())
    await link.start()
    with pytest.raises((asyncio.IncompleteReadError, OSError)):
        await (await Caller.to(link)).echoed(b"one")
    await link.close()
