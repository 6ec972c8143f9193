"""Whether the token log still has all of a stream: it is memory, and it forgets its oldest messages first.

A mark is written into the run record by the claim of the first attempt: which life of the log it was, and a sequence
that lies before the stream's first frame. A later attempt compares it with the log as it is then.
"""

from llorch_shared.bus.port import StreamState


def mark_of(state: StreamState) -> str:
    """A stream that begins from now on lies behind it."""
    return f"{state.life}#{state.last_seq}" if state.life else ""


def holds(state: StreamState, mark: str) -> bool:
    """Whether everything that was stored since the mark is there. False for a mark that says nothing."""
    life, _, seq = mark.rpartition("#")
    return bool(life) and life == state.life and state.first_seq <= int(seq) + 1
