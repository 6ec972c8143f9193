"""Request bodies: what all of them together hold while they arrive is bounded, and given back however they end."""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from llorch_gateway.bodies import SMALL_BODY_MAX, Room, read_body
from llorch_shared import subjects
from llorch_shared.errors import OrchError
from llorch_shared.json_values import VALUES_MAX, has_too_many
from support.gateways import Cluster, Door

MIB = 1024 * 1024


def arriving(*sizes: int, cut: bool = False) -> Callable[[], Awaitable[Any]]:
    messages = [{"type": "http.request", "body": b"x" * size, "more_body": True} for size in sizes]
    last = {"type": "http.disconnect"} if cut else {"type": "http.request", "body": b"", "more_body": False}
    pending = iter([*messages, last])

    async def receive() -> Any:
        return next(pending)

    return receive


@pytest.mark.parametrize(
    ("sizes", "room", "status"),
    [
        ((MIB, MIB, MIB), 3 * MIB, 0),
        ((MIB, MIB, MIB), 2 * MIB, 503),
        ((SMALL_BODY_MAX,), 0, 0),
        ((MIB,) * 5, 100 * MIB, 413),
    ],
)
async def test_large_bodies_share_a_room(sizes: tuple[int, ...], room: int, status: int) -> None:
    shared = Room(room)
    if status:
        with pytest.raises(OrchError) as refused:
            await read_body(arriving(*sizes), {}, 4 * MIB, within_s=20, room=shared)
        assert refused.value.status == status
    else:
        assert len(await read_body(arriving(*sizes), {}, 4 * MIB, within_s=20, room=shared)) == sum(sizes)
    assert shared.free == room


async def test_what_was_cut_short_is_given_back() -> None:
    shared = Room(8 * MIB)
    with pytest.raises(OrchError, match="cut short"):
        await read_body(arriving(2 * MIB, cut=True), {}, 4 * MIB, within_s=20, room=shared)
    assert shared.free == 8 * MIB


def of(fill: bytes, count: int, head: bytes = b'{"a":[', tail: bytes = b"]}") -> bytes:
    return head + b",".join([fill] * count) + tail


@pytest.mark.parametrize("fill", [b"[]", b"0", b'""', b'{"":0}', b'"\\""', b'"\\\\"', b"[[[]]]"])
def test_the_values_of_a_body_are_counted_before_it_is_decoded(fill: bytes) -> None:
    assert not has_too_many(of(fill, 700), 3_000)
    assert has_too_many(of(fill, 3_100), 3_000)
    assert has_too_many(of(fill, VALUES_MAX + 2))


@pytest.mark.parametrize(
    "text", ["1,2,3;" * 100_000, '{"quoted": ["text"]},' * 30_000, "\\" * 300_000 + ",[{" * 90_000, '",' * 150_000]
)
def test_what_is_in_a_text_does_not_count(text: str) -> None:
    assert not has_too_many(msgspec.json.encode({"prompt": text, "inputs": [text, text]}))


async def test_a_request_of_too_many_values_is_refused_at_both_doors(cluster: Cluster, door: Door) -> None:
    body = of(b"[]", VALUES_MAX + 2, b'{"kind":"plan","content":{"a":[', b"]}}")
    for path in ("artifacts", "tasks", "chat/completions", "messages"):
        assert (await door.post(f"/v1/{path}", body)).status == 413
    answer = await cluster.bus.request(subjects.api("artifacts.create"), body, timeout_s=15)
    assert answer.headers["Nats-Service-Error-Code"] == "413"
