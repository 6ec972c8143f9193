"""The one table of task states. A missing entry is the error; the picture in ARCHITECTURE.md is this table."""

from typing import Final

from llorch_shared.wire.task import TaskState

_S = TaskState

MOVES: Final[dict[TaskState, frozenset[TaskState]]] = {
    _S.QUEUED: frozenset({_S.PLACED, _S.CANCELLED, _S.EXPIRED, _S.DROPPED, _S.FAILED}),
    _S.PLACED: frozenset({_S.RUNNING, _S.PLACED, _S.CANCELLED, _S.FAILED, _S.EXPIRED}),
    _S.RUNNING: frozenset({_S.DONE, _S.FAILED, _S.CANCELLED, _S.PLACED, _S.QUEUED}),
    _S.DONE: frozenset(),
    _S.FAILED: frozenset(),
    _S.CANCELLED: frozenset(),
    _S.EXPIRED: frozenset(),
    _S.DROPPED: frozenset(),
}

FINAL: Final = frozenset(state for state, moves in MOVES.items() if not moves)


class IllegalMove(ValueError):
    """A task was about to change between two states that the table does not connect."""


def check_move(before: TaskState, after: TaskState) -> None:
    if after not in MOVES[before]:
        raise IllegalMove(f"a task cannot go from {before} to {after}")
