"""The replica's table, its backoff and its breaker."""

import random

import pytest

from llorch_poold.core.replica import MOVES, STEPS, Happened, IllegalEvent, Outcome, ReplicaCore, RestartPolicy, Step
from llorch_shared.wire.registry import ReplicaState

POLICY = RestartPolicy(
    backoff_initial_ms=500, backoff_factor=2.0, backoff_max_ms=4_000, stable_after_ms=60_000, breaker_restarts=4
)


def to_ready(core: ReplicaCore, at: int) -> None:
    assert core.handle(Outcome(Happened.PROVISIONED), now_ms=at) is Step.SPAWN
    assert core.handle(Outcome(Happened.LISTENING), now_ms=at) is Step.SELF_TEST
    assert core.handle(Outcome(Happened.PASSED), now_ms=at) is Step.SERVE


def broke(core: ReplicaCore, at: int, jitter: float = 1.0) -> int:
    core.handle(Outcome(Happened.BROKE, "it broke"), now_ms=at, jitter=jitter)
    return core.backoff_ms


def test_a_replica_goes_through_its_three_gates() -> None:
    core = ReplicaCore(POLICY)
    assert core.step is Step.PROVISION
    to_ready(core, 0)
    assert (core.state, core.last_error) == (ReplicaState.READY, "")


def test_each_failure_waits_longer_up_to_the_limit() -> None:
    core = ReplicaCore(POLICY)
    waits = []
    for _ in range(4):
        waits.append(broke(core, 0))
        core.handle(Outcome(Happened.WAITED), now_ms=0)
    assert waits == [500, 1000, 2000, 4000]
    assert core.restart_count == 4


def test_jitter_takes_at_most_half_of_the_wait() -> None:
    assert broke(ReplicaCore(POLICY), 0, jitter=0.0) == 250
    assert broke(ReplicaCore(POLICY), 0, jitter=1.0) == 500


def test_the_breaker_opens_after_too_many_restarts() -> None:
    core = ReplicaCore(POLICY)
    for _ in range(4):
        broke(core, 0)
        core.handle(Outcome(Happened.WAITED), now_ms=0)
    broke(core, 0)
    assert (core.state, core.step) == (ReplicaState.FAILED, Step.HALT)
    assert core.last_error == "gave up after 4 restarts: it broke"


def test_a_stable_run_starts_the_count_anew() -> None:
    core = ReplicaCore(POLICY)
    for _ in range(3):
        broke(core, 0)
        core.handle(Outcome(Happened.WAITED), now_ms=0)
    to_ready(core, 1_000)
    assert broke(core, 1_000 + POLICY.stable_after_ms) == 500


def test_a_short_run_does_not_start_the_count_anew() -> None:
    core = ReplicaCore(POLICY)
    broke(core, 0)
    core.handle(Outcome(Happened.WAITED), now_ms=0)
    to_ready(core, 1_000)
    assert broke(core, 2_000) == 1_000


def test_a_refused_replica_is_failed_and_says_why() -> None:
    core = ReplicaCore(POLICY, refusal="no GPU")
    assert (core.state, core.step, core.last_error) == (ReplicaState.FAILED, Step.HALT, "no GPU")
    assert core.handle(Outcome(Happened.DRAIN_WISHED), now_ms=0) is Step.DRAIN


def test_what_the_table_does_not_have_is_an_error() -> None:
    with pytest.raises(IllegalEvent):
        ReplicaCore(POLICY).handle(Outcome(Happened.PASSED), now_ms=0)


@pytest.mark.parametrize("seed", range(20))
def test_a_random_life_keeps_its_bounds(seed: int) -> None:
    chance = random.Random(seed)
    core, now, failures = ReplicaCore(POLICY), 0, 0
    for _ in range(400):
        possible = [happened for state, happened in MOVES if state is core.state]
        if core.state is ReplicaState.DRAINING or (core.state is ReplicaState.FAILED and chance.random() < 0.9):
            core, failures = ReplicaCore(POLICY), 0
            continue
        happened = chance.choice(possible)
        ready_before = core.state is ReplicaState.READY
        now += chance.choice((1, 1_000, 100_000))
        core.handle(Outcome(happened, "x"), now_ms=now, jitter=chance.random())
        failures = failures + 1 if happened is Happened.BROKE else failures
        assert core.step is STEPS[core.state]
        assert (core.backoff_ms > 0) == (core.state is ReplicaState.BACKOFF)
        assert core.backoff_ms <= POLICY.backoff_max_ms
        assert core.restart_count <= failures
        if ready_before and happened is Happened.BROKE:
            assert core.state in (ReplicaState.BACKOFF, ReplicaState.FAILED)


def test_a_replica_that_must_not_run_begins_when_it_may() -> None:
    core = ReplicaCore(POLICY)
    assert core.handle(Outcome(Happened.REFUSED, "not signed", "UNTRUSTED_ARTIFACT"), now_ms=0) is Step.HALT
    assert (core.state, core.refused, core.last_error) == (ReplicaState.FAILED, "UNTRUSTED_ARTIFACT", "not signed")
    assert core.handle(Outcome(Happened.PERMITTED), now_ms=9) is Step.PROVISION
    assert core.refused == ""
    to_ready(core, 10)
