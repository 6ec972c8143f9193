"""When a connection is given up for another server: not for an election, nor where there is no cluster."""

import asyncio
from collections.abc import Callable

import pytest

from llorch_shared.bus import nats_watch
from llorch_shared.bus.nats_watch import ServerWatch
from llorch_shared.bus.port import BusError, StreamState, Unanswered


class Server:
    """Answers as `says` tells, and counts its questions and who left."""

    def __init__(self, says: Callable[[int], str | BusError]) -> None:
        self.says = says
        self.asked = 0
        self.left: list[int] = []
        self.enough = asyncio.Event()

    async def state(self, stream: str) -> StreamState:
        self.asked += 1
        if self.asked >= 40:
            self.enough.set()
        answer = self.says(self.asked)
        if isinstance(answer, BusError):
            raise answer
        return StreamState(0, 1, 0, "life", answer)

    async def leave(self) -> None:
        self.left.append(self.asked)


@pytest.fixture
def hours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes by questions: each second is a thousandth of one."""
    monkeypatch.setattr(nats_watch, "EVERY_S", 0.005)
    monkeypatch.setattr(nats_watch, "AGAIN_S", 0.001)
    monkeypatch.setattr(nats_watch, "ALONE_S", 0.012)


async def watched(server: Server, *, others: bool = True) -> Server:
    watch = ServerWatch("test", server, leave=server.leave if others else None)
    watch.start("S")
    watch.start("S")
    try:
        async with asyncio.timeout(15):
            await server.enough.wait()
    finally:
        await watch.stop()
    return server


@pytest.mark.usefixtures("hours")
async def test_a_server_that_has_lost_its_cluster_is_left_again_and_again() -> None:
    for silence in ("", Unanswered("nobody answers")):
        server = await watched(Server(lambda asked, silence=silence: "nats-1" if asked == 1 else silence))  # type: ignore[misc]
        assert len(server.left) >= 2


@pytest.mark.usefixtures("hours")
async def test_a_server_with_a_leader_without_a_cluster_or_without_others_is_kept() -> None:
    assert (await watched(Server(lambda asked: "nats-1"))).left == []
    assert (await watched(Server(lambda asked: ""))).left == []
    assert (await watched(Server(lambda asked: Unanswered("nobody answers")))).left == []
    assert (await watched(Server(lambda asked: "nats-1" if asked == 1 else ""), others=False)).left == []
