"""Where streams have copies, the newest message of a subject is read from the leader, and reads the same."""

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from llorch_shared import streams, subjects
from llorch_shared.bus.nats import connect
from llorch_shared.bus.nats_reads import Reads
from llorch_shared.bus.nats_streams import _Refusal, refused
from llorch_shared.bus.port import Message, Unanswered
from llorch_shared.settings import NatsSettings
from support.bus_worlds import eventually
from support.nats_server import NatsServer

pytestmark = pytest.mark.nats


async def test_the_newest_message_is_the_same_from_the_leader(nats_server: NatsServer) -> None:
    one = await connect(NatsSettings(url=nats_server.url), name="one")
    copies = await connect(NatsSettings(url=nats_server.url, replicas=3), name="copies")
    try:
        await one.ensure(streams.base())
        assert await copies.last(streams.RUN, subjects.run("t")) is None
        stored = await one.store(subjects.run("t"), b"\x00\xffbytes", headers={"Llorch-Version": "2"})
        read = await copies.last(streams.RUN, subjects.run("t"))
        assert read is not None
        assert (read.data, read.seq, read.headers["Llorch-Version"]) == (b"\x00\xffbytes", stored.seq, "2")
        direct = await one.last(streams.RUN, subjects.run("t"))
        assert direct is not None
        assert (direct.stored_ms, direct.subject, direct.deleted) == (read.stored_ms, read.subject, read.deleted)
        gone: list[int] = []
        await one.subscribe(subjects.ALL_REGISTRY_LIVE, lambda message: gone.append(message.deleted))
        await one.store(subjects.registry("replica.n.r"), b"", ttl_s=1)
        await eventually(lambda: True in gone)
        marker = await copies.last(streams.REG, subjects.registry("replica.n.r"))
        assert marker is None or marker.deleted
    finally:
        await one.close()
        await copies.close()


async def test_what_a_copy_lacks_is_read_from_the_leader(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = await connect(NatsSettings(url=nats_server.url, replicas=3), name="copies")
    whole = Reads._page

    async def lags(self: Reads, stream: str, body: Mapping[str, Any]) -> tuple[list[Message], int] | None:
        found = await whole(self, stream, body)
        assert found is not None
        return found[0][:2], 0

    try:
        await bus.ensure(streams.base())
        for number in range(6):
            await bus.store(subjects.run(f"t{number % 4}"), b"%d" % number, headers={"Llorch-Version": "2"})
        monkeypatch.setattr(Reads, "_page", lags)
        assert [each.data for each in await bus.replay(streams.RUN, subjects.ALL_RUNS)] == [b"2", b"3", b"4", b"5"]
        assert [each.data for each in await bus.replay(streams.RUN, subjects.run("t1"))] == [b"5"]
        page = await bus.page(streams.RUN, subjects.ALL_RUNS, bytes_max=3)
        assert ([each.data for each in page.messages], page.more) == ([b"2", b"3", b"4"], True)
        snapshot = await bus.snapshot(streams.RUN, subjects.ALL_RUNS)
        assert [(each.data, each.headers["Llorch-Version"]) for each in snapshot] == [
            (b"2", "2"),
            (b"3", "2"),
            (b"4", "2"),
            (b"5", "2"),
        ]
    finally:
        await bus.close()


def test_a_message_that_the_copies_have_not_agreed_on_yet_is_sent_again() -> None:
    words = b'{"err_code":10158,"code":409,"description":"duplicate message id is in process"}'
    assert isinstance(refused(msgspec.json.decode(words, type=_Refusal)), Unanswered)
