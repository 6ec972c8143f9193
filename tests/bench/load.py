"""The load client, a process of its own: `python -m bench.load PLAN.json` prints one JSON result.

It speaks HTTP/1.1 on raw sockets and looks only for what it counts, so that it is not the limit: the stamps of tokens,
the end of each stream. Every loop is bounded by a number of tasks and a deadline.
"""

import asyncio
import re
import sys
import time
import uuid
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple, cast

import msgspec
import uvloop


class Route(StrEnum):
    """Who is asked, and how."""

    TASKS = "tasks"
    """A task, then its stream."""
    OPENAI = "openai"
    """One streamed chat, as OpenAI's clients do."""
    ENGINE = "engine"
    """The engine itself, without us: what a time to first token is compared with."""


class Signs(NamedTuple):
    """What a stream is searched for. `stamps`: group 1 holds the time of one or more tokens."""

    stamps: re.Pattern[bytes]
    end: re.Pattern[bytes]


SIGNS: Final = {
    Route.TASKS: Signs(re.compile(rb'"t":" (\d+)"'), re.compile(rb"event: (end|error)\ndata: (.*)\n\n")),
    Route.OPENAI: Signs(re.compile(rb'"delta":\{"content":" ([0-9 ]+)"'), re.compile(rb'data: (\[DONE\]|\{"error")')),
    Route.ENGINE: Signs(re.compile(rb'"content":" (\d+)"'), re.compile(rb'("stop":true|"error")')),
}


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to do. `stream` false only submits."""

    host: str = "127.0.0.1"
    port: int
    model_ref: str
    clients: int
    tasks_per_client: int
    max_tokens: int
    stream: bool = True
    spread_s: float = 0.0
    """Clients start evenly over this time, so that their tokens do not come in step."""
    deadline_s: float = 120.0
    pool_engine: str = "mock"
    prompt: str = "bench"
    route: Route = Route.TASKS


class Result(msgspec.Struct, kw_only=True):
    wall_s: float = 0.0
    accepted: int = 0
    refused: int = 0
    failed: int = 0
    ended: int = 0
    tokens: int = 0
    first_token_ms: list[float] = []
    token_ms: list[float] = []
    accept_ms: list[float] = []
    steady_tokens_per_s: float = 0.0
    """Tokens per second from the last stream's start to the first stream's end."""


class Connection(asyncio.Protocol):
    """One keep-alive connection. `done` resolves at the end of the exchange in progress."""

    def __init__(
        self, result: Result, arrivals: list[tuple[float, int]], ends: list[float], *, route: Route = Route.TASKS
    ) -> None:
        self.result = result
        self.signs = SIGNS[route]
        self.arrivals = arrivals
        self.ends = ends
        self.transport: asyncio.Transport | None = None
        self.buffer = b""
        self.streaming = False
        self.started = 0.0
        self.first = True
        self.done: asyncio.Future[int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish(0)

    def _finish(self, status: int) -> None:
        if self.done is not None and not self.done.done():
            self.done.set_result(status)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        if self.buffer:
            data = self.buffer + data
            self.buffer = b""
        if not self.streaming:
            head, gap, body = data.partition(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            if not gap or (length and len(body) < int(length[1])):
                self.buffer = data
                return
            self._finish(int(head[9:12]))
            return
        cut = data.rfind(b"\n\n") + 2
        whole, self.buffer = data[:cut], data[cut:]
        stamps = b" ".join(self.signs.stamps.findall(whole)).split()
        if stamps:
            if self.first:
                self.first = False
                self.result.first_token_ms.append((now - self.started) * 1e3)
            self.result.tokens += len(stamps)
            late = self.result.token_ms
            for stamp in stamps:
                late.append(now * 1e3 - int(stamp) / 1e3)
            self.arrivals.append((now, len(stamps)))
        end = self.signs.end.search(whole)
        if end:
            self.result.ended += 1
            self.ends.append(now)
            if b"error" in end[1]:
                self.result.failed += 1
            self._finish(200)

    async def exchange(self, request: bytes, *, streaming: bool, deadline_s: float) -> int:
        assert self.transport is not None
        self.done = asyncio.get_running_loop().create_future()
        self.streaming = streaming
        self.transport.write(request)
        return await asyncio.wait_for(self.done, deadline_s)


async def client(
    plan: Plan,
    index: int,
    result: Result,
    arrivals: list[tuple[float, int]],
    starts: list[float],
    ends: list[float],
) -> None:
    """One client: submit, read the stream to its end, again."""
    await asyncio.sleep(plan.spread_s * index / plan.clients)
    loop = asyncio.get_running_loop()
    for _ in range(plan.tasks_per_client):
        _, connection = await loop.create_connection(lambda: Connection(result, arrivals, ends), plan.host, plan.port)
        task = str(uuid.uuid4())
        body = msgspec.json.encode(
            {
                "task_id": task,
                "session_id": task,
                "workload": "completion",
                "model_ref": plan.model_ref,
                "engine": plan.pool_engine,
                "ctx": 8192,
                "priority": "interactive",
                "max_tokens": plan.max_tokens,
                "deadline_ms": 600_000,
                "prompt": plan.prompt,
            }
        )
        connection.started = time.monotonic()
        post = (
            b"POST /v1/tasks HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (len(body), body)
        )
        status = await connection.exchange(post, streaming=False, deadline_s=plan.deadline_s)
        result.accept_ms.append((time.monotonic() - connection.started) * 1e3)
        if status != 202:
            result.refused += 1
        else:
            result.accepted += 1
            if plan.stream:
                get = b"GET /v1/tasks/%b/stream HTTP/1.1\r\nHost: bench\r\nAccept: text/event-stream\r\n\r\n"
                connection.first = True
                starts.append(time.monotonic())
                await connection.exchange(get % task.encode(), streaming=True, deadline_s=plan.deadline_s)
        assert connection.transport is not None
        connection.transport.abort()


async def submitter(plan: Plan, index: int, result: Result) -> None:
    """Submissions on one kept connection, one after the other."""
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: Connection(result, [], []), plan.host, plan.port)
    for _ in range(plan.tasks_per_client):
        task = str(uuid.uuid4())
        body = (
            b'{"task_id":"%b","session_id":"%b","workload":"completion","model_ref":"%b","engine":"%b","ctx":8192,'
            b'"priority":"batch","max_tokens":%d,"deadline_ms":600000,"prompt":"bench"}'
        ) % (task.encode(), task.encode(), plan.model_ref.encode(), plan.pool_engine.encode(), plan.max_tokens)
        before = time.monotonic()
        status = await connection.exchange(
            b"POST /v1/tasks HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (len(body), body),
            streaming=False,
            deadline_s=plan.deadline_s,
        )
        result.accept_ms.append((time.monotonic() - before) * 1e3)
        if status == 202:
            result.accepted += 1
        else:
            result.refused += 1


def streamed_request(plan: Plan) -> bytes:
    """One that is answered with a stream."""
    if plan.route is Route.OPENAI:
        path, wish = b"/v1/chat/completions", {"model": plan.model_ref, "max_tokens": plan.max_tokens, "stream": True}
        wish["messages"] = [{"role": "user", "content": plan.prompt}]
    else:
        path, wish = b"/completion", {"prompt": plan.prompt, "n_predict": plan.max_tokens, "stream": True}
    body = msgspec.json.encode(wish)
    head = b"POST %b HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % (path, len(body)) + body


async def chatter(
    plan: Plan,
    index: int,
    result: Result,
    arrivals: list[tuple[float, int]],
    starts: list[float],
    ends: list[float],
) -> None:
    """One client whose every request is answered with a stream: a chat, or the engine itself."""
    await asyncio.sleep(plan.spread_s * index / plan.clients)
    loop = asyncio.get_running_loop()
    post = streamed_request(plan)
    for _ in range(plan.tasks_per_client):
        _, connection = await loop.create_connection(
            lambda: Connection(result, arrivals, ends, route=plan.route), plan.host, plan.port
        )
        connection.started = time.monotonic()
        starts.append(connection.started)
        result.accepted += 1
        await connection.exchange(post, streaming=True, deadline_s=plan.deadline_s)
        assert connection.transport is not None
        connection.transport.abort()


def steady_rate(arrivals: list[tuple[float, int]], starts: list[float], ends: list[float]) -> float:
    """Tokens per second from the last start to the first end; over everything where no such window exists."""
    if not arrivals or not ends:
        return 0.0
    since, until = max(starts), min(ends)
    if until - since < 1.0:
        since, until = min(starts), max(ends)
    return sum(count for at, count in arrivals if since <= at <= until) / (until - since)


async def run(plan: Plan) -> Result:
    result = Result()
    arrivals: list[tuple[float, int]] = []
    starts: list[float] = []
    ends: list[float] = []
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for index in range(plan.clients):
            if plan.route is not Route.TASKS:
                group.create_task(chatter(plan, index, result, arrivals, starts, ends))
            elif plan.stream:
                group.create_task(client(plan, index, result, arrivals, starts, ends))
            else:
                group.create_task(submitter(plan, index, result))
    result.wall_s = time.monotonic() - began
    result.steady_tokens_per_s = steady_rate(arrivals, starts, ends)
    return result


if __name__ == "__main__":
    plan = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Plan)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.stdout.buffer.write(msgspec.json.encode(runner.run(run(plan))))
