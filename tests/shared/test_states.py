"""The state table of a task."""

from itertools import product

import pytest

from llorch_shared.states import FINAL, MOVES, IllegalMove, check_move
from llorch_shared.wire.task import TaskState

S = TaskState


def test_every_state_has_a_row() -> None:
    assert set(MOVES) == set(TaskState)


def test_the_final_states_are_the_five_ends() -> None:
    assert frozenset({S.DONE, S.FAILED, S.CANCELLED, S.EXPIRED, S.DROPPED}) == FINAL


@pytest.mark.parametrize(("before", "after"), list(product(TaskState, TaskState)))
def test_a_move_is_allowed_exactly_when_the_table_has_it(before: TaskState, after: TaskState) -> None:
    if after in MOVES[before]:
        check_move(before, after)
    else:
        with pytest.raises(IllegalMove, match=f"{before} to {after}"):
            check_move(before, after)


def test_nothing_leaves_a_final_state() -> None:
    for before, after in product(FINAL, TaskState):
        with pytest.raises(IllegalMove):
            check_move(before, after)


def test_every_state_can_be_reached_from_the_queue_and_can_end() -> None:
    def reachable(start: TaskState) -> set[TaskState]:
        seen = {start}
        waiting = [start]
        while waiting:
            for after in MOVES[waiting.pop()] - seen:
                seen.add(after)
                waiting.append(after)
        return seen

    assert reachable(S.QUEUED) == set(TaskState)
    for state in TaskState:
        assert reachable(state) & FINAL


def test_a_lost_node_puts_a_task_on_another_and_a_retried_placement_is_a_move() -> None:
    check_move(S.RUNNING, S.PLACED)
    check_move(S.PLACED, S.PLACED)


def test_a_queued_task_never_runs_without_being_placed() -> None:
    assert S.RUNNING not in MOVES[S.QUEUED]
    assert S.DONE not in MOVES[S.PLACED]
