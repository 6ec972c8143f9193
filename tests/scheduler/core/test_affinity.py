"""A session prefers the replica that had it, for a while, and never waits for it."""

import msgspec

from llorch_scheduler.core.affinity import Affinity
from llorch_scheduler.core.pool_fleet import PoolFleet
from llorch_shared.wire.policy import AffinitySpec
from scheduler.fleets import POOL, fleet_of, job, picked, place, ready
from scheduler.samples import spec, task_id

TTL = msgspec.structs.replace(spec(), affinity=AffinitySpec(ttl_ms=1_000))
ONE, OTHER = task_id(901), task_id(902)


def ask(replicas: PoolFleet, number: int, *, session: str = ONE, at_ms: int = 0) -> tuple[str, bool | None, str]:
    decision = place(replicas, job(number, session_id=session), at_ms=at_ms)
    assert decision.log.kv_warmth is decision.kv_warmth
    return picked(decision), decision.kv_warmth, decision.log.decision_reason


def test_a_session_comes_back_to_its_replica() -> None:
    _, replicas = fleet_of(ready("r1", slots=4), ready("r2", slots=4))
    assert ask(replicas, 1) == ("r1", None, "replica_id")
    assert ask(replicas, 2) == ("r1", True, "session_affinity")
    assert ask(replicas, 3, session=OTHER) == ("r2", None, "active_slots")


def test_session_ids_are_compared_in_lower_case() -> None:
    _, replicas = fleet_of(ready("r1", slots=4), ready("r2", slots=4))
    session = "ABCDEF00-0000-4000-8000-000000000001"
    assert ask(replicas, 1, session=session)[1] is None
    assert ask(replicas, 2, session=session.lower())[1] is True


def test_a_pool_that_is_taken_away_forgets_its_sessions() -> None:
    _, replicas = fleet_of(ready("r1", slots=4))
    ask(replicas, 1)
    replicas.configure(None)
    replicas.configure(spec())
    assert ask(replicas, 2)[1] is None


def test_a_session_whose_replica_is_full_moves_and_is_told_so() -> None:
    _, replicas = fleet_of(ready("r1"), ready("r2", slots=2))
    assert ask(replicas, 1)[0] == "r1"
    assert ask(replicas, 2) == ("r2", False, "only_candidate")
    assert ask(replicas, 3) == ("r2", True, "only_candidate")


def test_a_session_is_forgotten_after_its_time_and_every_task_renews_it() -> None:
    _, replicas = fleet_of(ready("r1", slots=4), ready("r2", slots=4), pool=TTL)
    assert ask(replicas, 1, at_ms=0)[1] is None
    assert ask(replicas, 2, at_ms=999)[1] is True
    assert ask(replicas, 3, at_ms=1_998)[1] is True
    assert ask(replicas, 4, at_ms=2_998) == ("r2", None, "active_slots")


def test_a_time_to_live_of_zero_is_off() -> None:
    pool = msgspec.structs.replace(spec(), affinity=AffinitySpec(ttl_ms=0))
    _, replicas = fleet_of(ready("r1", slots=4), ready("r2", slots=4), pool=pool)
    assert [ask(replicas, n)[:2] for n in (1, 2)] == [("r1", None), ("r2", None)]


def test_a_restarted_engine_has_lost_its_cache() -> None:
    fleet, replicas = fleet_of(ready("r1", slots=4), ready("r2", slots=4))
    assert ask(replicas, 1)[0] == "r1"
    fleet.named(POOL, "r1", 0).report(ready("r1", slots=4, incarnation="i2"))
    assert ask(replicas, 2) == ("r2", False, "active_slots")


def test_a_much_slower_replica_is_not_kept_for_its_cache() -> None:
    fleet, replicas = fleet_of(ready("r1", slots=4), ready("r2", slots=4))
    assert ask(replicas, 1)[0] == "r1"
    for name, rate in (("r1", 20.0), ("r2", 100.0)):
        record = ready(name, slots=4, perf_tokens_per_s=rate, perf_first_token_ms=10)
        fleet.named(POOL, name, 0).report(record)
    assert ask(replicas, 2) == ("r2", False, "predicted_end_ms")


def test_a_slightly_slower_replica_is_kept_for_its_cache() -> None:
    fleet, replicas = fleet_of(ready("r1", slots=4), ready("r2", slots=4))
    assert ask(replicas, 1)[0] == "r1"
    for name, rate in (("r1", 100.0), ("r2", 104.0)):
        record = ready(name, slots=4, perf_tokens_per_s=rate, perf_first_token_ms=10)
        fleet.named(POOL, name, 0).report(record)
    assert ask(replicas, 2) == ("r1", True, "session_affinity")


def test_tasks_found_running_after_a_takeover_tell_where_their_sessions_are() -> None:
    fleet, replicas = fleet_of(ready("r1", slots=4), ready("r2", slots=4))
    fleet.named(POOL, "r2", 0).hold(job(1, session_id=ONE))
    assert ask(replicas, 2) == ("r2", True, "session_affinity")


def test_memory_is_bounded_and_the_sessions_seen_last_are_kept() -> None:
    affinity = Affinity(sessions_max=100)
    for number in range(1_000):
        affinity.saw("a", "often", "r1", "i1", number)
        affinity.saw("a", f"s{number}", "r1", "i1", number)
    assert len(affinity) == 100
    assert affinity.last("a", "often", at_ms=1_000, ttl_ms=10_000) is not None
    assert affinity.last("a", "s999", at_ms=1_000, ttl_ms=10_000) is not None
    assert affinity.last("a", "s1", at_ms=1_000, ttl_ms=10_000) is None


def test_another_tenants_session_of_the_same_id_is_another_one() -> None:
    _, replicas = fleet_of(ready("r1", slots=4), ready("r2", slots=4))
    for number, tenant in ((1, "blue"), (2, "red")):
        place(replicas, job(number, session_id=ONE, tenant=tenant), at_ms=number)
    affinity = replicas.affinity
    affinity.spoke("blue", ONE, "r1", ready("r1").incarnation)
    kept = {each.tenant: (each.replica_id, each.turns, each.warm) for each in affinity.of_any(ONE, at_ms=3, ttl_ms=9)}
    assert kept == {"blue": ("r1", 1, True), "red": ("r2", 1, False)}
    decision = place(replicas, job(3, session_id=ONE, tenant="blue"), at_ms=3)
    assert (picked(decision), decision.kv_warmth) == ("r1", True)
    affinity.drop("red", ONE)
    assert [each.tenant for each in affinity.of_any(ONE, at_ms=3, ttl_ms=9)] == ["blue"]
