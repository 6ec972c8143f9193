"""How long attempts decoded, by the times at which the token log stored their tokens: for an attempt whose node died
and could not say so itself. Pure."""

from collections.abc import Iterable

from llorch_shared.bus.port import Message
from llorch_shared.wire.frames import BadFrame, Kind, peek


def decode_times(messages: Iterable[Message]) -> dict[int, int]:
    """Milliseconds from the first to the last token, by attempt. `messages` are of one stream, in their order; tokens
    that were published again count when they came first."""
    began: dict[int, int] = {}
    ended: dict[int, int] = {}
    furthest: dict[int, int] = {}
    for message in messages:
        try:
            header = peek(message.data)
        except BadFrame:
            continue
        if header.kind is not Kind.TOKENS or header.last <= furthest.get(header.attempt, -1):
            continue
        furthest[header.attempt] = header.last
        began.setdefault(header.attempt, message.stored_ms)
        ended[header.attempt] = message.stored_ms
    return {attempt: max(0, ended[attempt] - began[attempt]) for attempt in began}
