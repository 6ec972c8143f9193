"""Who loses a compare-and-set to another writer."""

import pytest

from llorch_shared.bus.conflicts import TRIES_MAX, retry_on_conflict
from llorch_shared.bus.port import WrongSequence


class Contest:
    """Lost `losses` times."""

    def __init__(self, losses: int) -> None:
        self.losses = losses
        self.attempts = 0

    async def attempt(self) -> str:
        self.attempts += 1
        if self.attempts <= self.losses:
            raise WrongSequence("somebody else was first")
        return "written"


async def test_a_change_is_made_anew_until_it_wins() -> None:
    contest = Contest(losses=TRIES_MAX - 1)
    assert await retry_on_conflict(contest.attempt) == "written"
    assert contest.attempts == TRIES_MAX


@pytest.mark.parametrize("tries", [1, TRIES_MAX])
async def test_who_loses_every_time_is_told_so(tries: int) -> None:
    contest = Contest(losses=TRIES_MAX)
    with pytest.raises(WrongSequence):
        await retry_on_conflict(contest.attempt, tries=tries)
    assert contest.attempts == tries


async def test_another_failure_is_not_tried_again() -> None:
    async def fails() -> str:
        raise LookupError

    with pytest.raises(LookupError):
        await retry_on_conflict(fails)
