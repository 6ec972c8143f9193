"""The HTTP client of an engine: splits, reuse, aborts, and peers that misbehave."""

import asyncio

import pytest

from llorch_poold.engine_connection import NotHttp, TooSlow, Unreachable
from llorch_poold.engine_http import EngineHttp
from poold.engines import read_request, scripted

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def test_a_connection_is_used_again() -> None:
    connections = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while True:
            await read_request(reader)
            writer.write(OK)

    async with scripted(answer) as http:
        for _ in range(5):
            assert (await http.request("GET", "/x", timeout_s=20)).body == b"ok"
    assert connections == 1


async def test_a_reply_that_comes_byte_by_byte_is_whole() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        for position in range(len(OK)):
            writer.write(OK[position : position + 1])
            await writer.drain()
            await asyncio.sleep(0)

    async with scripted(answer) as http:
        assert await http.request("POST", "/x", b"{}", timeout_s=20) == (200, b"ok")


async def test_an_idle_connection_that_the_engine_closed_is_replaced() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK)
        await read_request(reader)
        writer.close()

    async with scripted(answer) as http:
        assert (await http.request("GET", "/1", timeout_s=20)).status == 200
        assert (await http.request("GET", "/2", timeout_s=20)).status == 200


async def test_nobody_listens() -> None:
    with pytest.raises(Unreachable):
        await EngineHttp("127.0.0.1", 1).request("GET", "/", timeout_s=20)


async def test_a_silent_engine_is_given_up() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with scripted(answer) as http:
        with pytest.raises(TooSlow):
            await http.request("GET", "/", timeout_s=0.05)


async def test_something_that_is_not_http() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"220 smtp.example.org ESMTP\r\n")

    async with scripted(answer) as http:
        with pytest.raises(NotHttp):
            await http.request("GET", "/", timeout_s=20)


async def test_an_abort_closes_the_socket() -> None:
    closed = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await reader.read()
        closed.set()
        writer.close()

    async with scripted(answer) as http:
        with pytest.raises(TooSlow):
            await http.request("GET", "/", timeout_s=0.05)
        async with asyncio.timeout(15):
            await closed.wait()
