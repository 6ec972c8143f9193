"""What a node publishes again of what the token log may lack."""

from math import inf
from types import SimpleNamespace
from typing import Any

import pytest

from llorch_poold import ownership
from llorch_poold.core.fence import Fence
from llorch_poold.core.retention import FrameRetention
from llorch_poold.outlet import fence_clock
from llorch_poold.ownership import Ownership
from llorch_shared.bus.port import Unanswered
from llorch_shared.metrics import Metrics


class Server:
    """Confirms as many flushes as the test says."""

    def __init__(self) -> None:
        self.published: list[bytes] = []
        self.confirms = inf

    def publish(self, _subject: str, data: bytes) -> None:
        self.published.append(data)

    async def flush(self) -> None:
        self.confirms -= 1
        if self.confirms < 0:
            raise Unanswered("the server did not answer a ping")


FRAMES = [b"id: 1:%d\nevent: metrics\ndata: {}\n\n" % number for number in range(4)]


def node_with_frames() -> tuple[Ownership, Server, Fence]:
    server, fence, retention = Server(), Fence(ttl_s=3600), FrameRetention(1 << 20)
    now = fence_clock()
    fence.renewed("node", now, now)
    assert fence.open(fence.epoch, now)
    for number, frame in enumerate(FRAMES):
        retention.open(f"task-{number}", f"tok.{number}").add(frame)
    node: Any = SimpleNamespace(bus=server, fence=fence, retention=retention, metrics=Metrics(), node_id="node-1")
    return Ownership(node, lambda: ()), server, fence


async def test_what_the_server_has_confirmed_is_in_the_log() -> None:
    owned, server, _ = node_with_frames()
    assert await owned.publish_again()
    assert server.published == FRAMES


@pytest.mark.parametrize("confirms", [0, 2])
async def test_frames_that_the_server_did_not_confirm_may_still_be_missing(
    confirms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "FLUSH_BYTES", 1)
    owned, server, _ = node_with_frames()
    server.confirms = confirms
    assert not await owned.publish_again()
    server.confirms = inf
    server.published.clear()
    assert await owned.publish_again()
    assert server.published == FRAMES


async def test_a_node_that_may_not_speak_publishes_everything_when_it_may() -> None:
    owned, server, fence = node_with_frames()
    fence.close()
    assert await owned.publish_again()
    assert not server.published
