"""Where a reader joins the stored stream late: whether a frame there goes on from what the reader has."""

from llorch_shared.streaming.endings import was_cancelled
from llorch_shared.wire.frames import Header, Kind, announced_attempt, stands_at


def touches(header: Header, data: bytes, said_by: int, next_index: int, *, named: int) -> bool:
    """Whether a stored frame proves that nothing lies between it and a reader's last token, the one before `next_index`
    that attempt `said_by` said: a token of that attempt, or the word of the attempt after it that it goes on from
    there. `named` is the attempt that the task's record named."""
    match header.kind:
        case Kind.TOKENS:
            of_it = named <= header.attempt == said_by
            return of_it and header.first <= next_index <= header.last + 1
        case Kind.METRICS:
            stands, attempt = stands_at(data), announced_attempt(data)
            if stands is None or attempt < named:
                return False
            if stands.repeats:
                return stands.at <= next_index
            return stands.at == next_index and attempt == said_by + 1
        case Kind.END:
            return was_cancelled(data) or (header.attempt, header.last) == (said_by, next_index)
        case _:
            return False
