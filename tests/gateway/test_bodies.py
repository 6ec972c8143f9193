"""Request bodies: what all of them together hold while they arrive is bounded, and given back however they end."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from llorch_gateway.bodies import SMALL_BODY_MAX, Room, read_body
from llorch_shared.errors import OrchError

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
