"""Where streams have copies, the newest message of a subject is read from the leader, and reads the same."""

import msgspec
import pytest

from llorch_shared import streams, subjects
from llorch_shared.bus.nats import connect
from llorch_shared.bus.nats_streams import _Refusal, refused
from llorch_shared.bus.port import Unanswered
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


def test_a_message_that_the_copies_have_not_agreed_on_yet_is_sent_again() -> None:
    words = b'{"err_code":10158,"code":409,"description":"duplicate message id is in process"}'
    assert isinstance(refused(msgspec.json.decode(words, type=_Refusal)), Unanswered)
