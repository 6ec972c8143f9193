"""How long a pool that loads is expected to need."""

from llorch_scheduler.core.loading import Loading
from llorch_shared.wire.registry import ReplicaState
from scheduler.core_world import replica_record

PRIOR_MS = 30_000


def report(loading: Loading, state: ReplicaState, at_ms: int, name: str = "r1") -> None:
    loading.reported(replica_record(name, state=state), at_ms)


def test_until_one_was_ready_the_prior_counts_down_and_never_to_nothing() -> None:
    loading = Loading()
    report(loading, ReplicaState.STARTING, 1_000)
    assert loading.expected_ms(1_000, PRIOR_MS) == 30_000
    assert loading.expected_ms(21_000, PRIOR_MS) == 10_000
    assert loading.expected_ms(91_000, PRIOR_MS) == 3_000


def test_it_learns_from_the_first_report_of_a_life_to_ready() -> None:
    loading = Loading()
    for state, at_ms in ((ReplicaState.PROVISIONING, 0), (ReplicaState.TESTING, 8_000), (ReplicaState.READY, 10_000)):
        report(loading, state, at_ms)
    report(loading, ReplicaState.STARTING, 50_000)
    assert loading.expected_ms(50_000, PRIOR_MS) == 10_000
    report(loading, ReplicaState.READY, 70_000)
    report(loading, ReplicaState.STARTING, 80_000)
    assert loading.expected_ms(80_000, PRIOR_MS) == 13_000


def test_the_oldest_load_counts_and_one_that_fails_or_vanishes_does_not() -> None:
    loading = Loading()
    report(loading, ReplicaState.STARTING, 0, "r1")
    report(loading, ReplicaState.STARTING, 5_000, "r2")
    assert len(loading) == 2
    assert loading.expected_ms(10_000, PRIOR_MS) == 20_000
    report(loading, ReplicaState.FAILED, 10_000, "r1")
    assert loading.expected_ms(10_000, PRIOR_MS) == 25_000
    loading.lost("r2")
    assert loading.expected_ms(10_000, PRIOR_MS) == 30_000
