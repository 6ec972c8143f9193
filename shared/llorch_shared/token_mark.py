"""Whether the token log still has all of a stream: it is memory, and it forgets its oldest messages first.

A mark is written into the run record by the claim of the first attempt: which life of the log it was, and a sequence
that lies before the stream's first frame. A later attempt compares it with the log as it is then, and who reads the
stream need not look before it.
"""

from typing import Final

from llorch_shared.bus.port import StreamState

NOT_KNOWN: Final = "?"
"""The mark of who could not see the log."""


def mark_of(state: StreamState) -> str:
    """A stream that begins from now on lies behind it."""
    return f"{state.life}#{state.last_seq}" if state.life else NOT_KNOWN


def holds(state: StreamState, mark: str) -> bool:
    """Whether everything that was stored since the mark is there. A record without a mark is of a release that made
    none: it is taken as that release took it, which did not ask."""
    if not mark:
        return True
    life, _, seq = mark.rpartition("#")
    return _is_of(life, state.life) and state.first_seq <= int(seq) + 1


def first_seq(mark: str, life: str) -> int:
    """The sequence before which this life of the log has nothing of the stream; 1 where the mark does not tell."""
    marked, _, seq = mark.rpartition("#")
    return int(seq) + 1 if _is_of(marked, life) else 1


def _is_of(marked: str, life: str) -> bool:
    """A mark of the release before this one does not say since when the leader of a cluster has led."""
    return bool(marked) and marked in (life, life.rpartition("@")[0])
