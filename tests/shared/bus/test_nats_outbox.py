"""What is written in one loop iteration leaves at once, or not at all."""

import asyncio
from math import inf
from types import SimpleNamespace
from typing import Any

import pytest

from llorch_shared.bus.nats_outbox import Outbox


class Socket:
    """The client's transport and its writer; a closed one raises as uvloop's does."""

    def __init__(self) -> None:
        self.closed = False
        self.sent: list[bytes] = []
        self._io_writer = self
        self.transport = self

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes) -> None:
        if self.closed:
            raise RuntimeError("the handler is closed")
        self.sent.append(data)


@pytest.fixture
async def socket() -> Socket:
    return Socket()


async def test_one_write_for_what_one_iteration_wrote(socket: Socket) -> None:
    client: Any = SimpleNamespace(_transport=socket, is_connected=True)
    outbox = Outbox(client)
    assert outbox.write(b"a")
    assert outbox.write(b"b")
    await asyncio.sleep(0)
    assert socket.sent == [b"ab"]


async def test_a_socket_that_closed_before_the_client_knows_drops_what_was_written(socket: Socket) -> None:
    client: Any = SimpleNamespace(_transport=socket, is_connected=True)
    outbox = Outbox(client)
    outbox.write(b"a")
    socket.closed = True
    outbox.send()
    assert socket.sent == []


class Limit:
    """Of what is written at a time before 10."""

    now = 0.0

    def until(self) -> float:
        return 10.0 if self.now < 10 else inf

    def is_over(self, until: float) -> bool:
        return self.now >= until


async def test_what_was_written_before_the_process_was_stopped_is_not_sent_late(socket: Socket) -> None:
    dropped: list[bool] = []
    client: Any = SimpleNamespace(_transport=socket, is_connected=True, drop_connection=lambda: dropped.append(True))
    limit = Limit()
    outbox = Outbox(client, limit=limit)
    outbox.write(b"in time")
    outbox.send()
    outbox.write(b"late")
    limit.now = 13
    outbox.send()
    assert (socket.sent, dropped) == ([b"in time"], [True])
    outbox.write(b"without a limit")
    outbox.send()
    assert socket.sent == [b"in time", b"without a limit"]
