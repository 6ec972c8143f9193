"""Engines for adapter tests: the mock engine as a process, and a server that answers with given bytes."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from llorch_poold.adapters.llamacpp import LlamaCpp
from llorch_poold.adapters.port import EngineFailure, Finish, GenerationCall
from llorch_poold.engine_http import EngineHttp
from support.node_harness import task_request

DEADLINE_S = 30.0


class Collected:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.began = 0
        self.tokens_in: int | None = None
        self.texts: list[str] = []
        self.more: list[bytes] = []
        self.reads: list[int] = []
        self.finish: Finish | None = None
        self.failure: EngineFailure | None = None
        self.changed = asyncio.Event()

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def on_begin(self) -> None:
        self.began += 1
        self.changed.set()

    def on_prompt(self, tokens_in: int) -> None:
        self.tokens_in = tokens_in

    def on_tokens(self, texts: Sequence[str], more: Sequence[bytes] = ()) -> None:
        assert self.finish is None
        assert self.failure is None
        self.texts += texts
        self.more += more
        self.reads.append(len(texts))
        self.changed.set()

    def on_finish(self, finish: Finish) -> None:
        assert self.finish is None
        assert self.failure is None
        self.finish = finish
        self.changed.set()

    def on_failure(self, failure: EngineFailure) -> None:
        assert self.finish is None
        assert self.failure is None
        self.failure = failure
        self.changed.set()

    async def until(self, question: Callable[[], Any]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not question():
                self.changed.clear()
                await self.changed.wait()

    async def over(self) -> "Collected":
        await self.until(lambda: self.finish is not None or self.failure is not None)
        return self


def call(*, slot: int = 0, seed: int = 7, **changes: Any) -> GenerationCall:
    return GenerationCall(request=task_request(**changes), seed=seed, slot=slot, correlation_id="corr-1")


@asynccontextmanager
async def mock_engine(*flags: str) -> AsyncIterator[tuple[LlamaCpp, EngineHttp]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "llorch_poold.mock_engine", *flags],
        stdout=subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if not name.startswith("LLORCH_")},
    )
    assert process.stdout is not None
    line = await asyncio.to_thread(process.stdout.readline)
    http = EngineHttp("127.0.0.1", int(json.loads(line)["listening"].rpartition(":")[2]))
    try:
        yield LlamaCpp(http), http
    finally:
        await http.close()
        process.terminate()
        process.stdout.close()
        await asyncio.to_thread(process.wait, 10)


async def set_fault(http: EngineHttp, **fault: Any) -> None:
    await set_faults(http, fault)


async def set_faults(http: EngineHttp, *faults: dict[str, Any]) -> None:
    """Of the next generations, one after another."""
    reply = await http.request("POST", "/fault", msgspec.json.encode(faults), timeout_s=20)
    assert reply.status == 200


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


@asynccontextmanager
async def scripted(answer: Answer) -> AsyncIterator[EngineHttp]:
    """A server that reads one request and lets `answer` write whatever it wants; every connection anew."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    http = EngineHttp("127.0.0.1", server.sockets[0].getsockname()[1])
    try:
        yield http
    finally:
        await http.close()
        server.close()


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Head and body."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    return head, await reader.readexactly(length)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunked(*payloads: object) -> bytes:
    """Frames of a completion stream, each in a chunk of its own, then the end."""
    data = b""
    for payload in payloads:
        frame = b"data: " + msgspec.json.encode(payload) + b"\n\n"
        data += b"%x\r\n%b\r\n" % (len(frame), frame)
    return HEAD + data + b"0\r\n\r\n"


def token(text: str, count: int) -> dict[str, object]:
    return {"index": 0, "content": text, "stop": False, "id_slot": -1, "tokens_predicted": count}


def last(count: int, stop_type: str = "limit") -> dict[str, object]:
    return {
        "content": "",
        "stop": True,
        "tokens_predicted": count,
        "tokens_evaluated": 5,
        "stop_type": stop_type,
        "timings": {"cache_n": 0},
    }
