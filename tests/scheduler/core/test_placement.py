"""Which replica takes a task, one situation at a time."""

import msgspec
import pytest

from llorch_scheduler.core.placement import shape_of
from llorch_scheduler.core.shape import Shape
from llorch_shared.wire.policy import AffinitySpec, CanarySpec
from llorch_shared.wire.registry import ReplicaState
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Engine, PlacementMode, PlacementOverrides, Workload
from scheduler.fleets import fleet_of, job, picked, place, ready
from scheduler.samples import request, spec

MIXED = msgspec.structs.replace(spec(), require_same_engine_version=False)
ON_0 = PlacementOverrides(require_device_mask="cuda:0")


def test_what_a_filter_removes_is_counted_in_the_order_of_the_filters() -> None:
    _, replicas = fleet_of(
        ready("r1", state=ReplicaState.STARTING),
        ready("r2", state=ReplicaState.DRAINING),
        ready("r3", engine=Engine.VLLM),
        ready("r4", model_ref="another"),
        ready("r5", ctx_max=256),
        ready("r6", workloads=(Workload.EMBEDDING,)),
        ready("r7", device="cuda:1"),
        ready("r8", device="cuda:0"),
        ready("r9", device="cuda:0", slots=0),
        pool=MIXED,
    )
    log = place(replicas, job(1, placement=ON_0)).log
    assert (log.selected, log.candidates_considered, log.decision_reason) == ("r8", 9, "only_candidate")
    assert log.filters_applied == ("ready:1", "draining:1", "engine:1", "model:1", "device_mask:3", "slots:1")
    log = place(replicas, job(2)).log
    assert log.selected == "r7"
    assert log.filters_applied == ("ready:1", "draining:1", "engine:1", "model:1", "ctx:1", "workload:1", "slots:2")


def test_a_required_device_is_matched_exactly_and_never_replaced() -> None:
    _, replicas = fleet_of(ready("r1", device="cuda:1"), ready("r2", device="cuda:0,cuda:1"))
    decision = place(replicas, job(1, placement=ON_0))
    assert (picked(decision), decision.busy, decision.log.decision_reason) == ("", False, "no_feasible_replica")


def test_busy_says_that_a_slot_is_all_that_lacks() -> None:
    _, replicas = fleet_of(ready("r1"))
    shape = replicas.shape_of(request(1))
    assert replicas.can_take(shape)
    place(replicas, job(1))
    decision = place(replicas, job(2))
    assert (picked(decision), decision.busy, decision.log.decision_reason) == ("", True, "all_slots_taken")
    assert not replicas.can_take(shape)
    assert replicas.can_serve(shape)


def test_most_free_memory_then_fewest_taken_slots_then_the_least_id() -> None:
    _, replicas = fleet_of(
        ready("r3", slots=2, free_vram_mb=100),
        ready("r2", slots=2, free_vram_mb=100),
        ready("r1", slots=2, free_vram_mb=50),
    )
    decisions = [place(replicas, job(n)) for n in range(1, 6)]
    assert [picked(each) for each in decisions] == ["r2", "r3", "r2", "r3", "r1"]
    assert [each.log.decision_reason for each in decisions] == [
        "replica_id",
        "active_slots",
        "replica_id",
        "free_vram_mb",
        "only_candidate",
    ]


def test_the_soonest_end_goes_before_free_memory() -> None:
    _, replicas = fleet_of(
        ready("fast", perf_tokens_per_s=100, perf_first_token_ms=50, free_vram_mb=1),
        ready("slow", perf_tokens_per_s=20, perf_first_token_ms=50),
    )
    decision = place(replicas, job(1, expected_tokens=200, max_tokens=400))
    assert picked(decision) == "fast"
    assert decision.log.tie_breakers_applied == ("predicted_end_ms",)
    assert decision.log.predicted_end_ms == pytest.approx(2_050, rel=0.11)
    assert decision.log.free_vram_mb == 1


def test_a_long_prefill_is_part_of_the_end() -> None:
    _, replicas = fleet_of(
        ready("r1", perf_tokens_per_s=100, perf_first_token_ms=2_000),
        ready("r2", perf_tokens_per_s=50, perf_first_token_ms=100),
    )
    assert picked(replicas.decide(request(1, max_tokens=10), tenant="default", at_ms=0)) == "r2"
    assert picked(replicas.decide(request(1, max_tokens=400), tenant="default", at_ms=0)) == "r1"
    assert picked(replicas.decide(request(1, max_tokens=400), tenant="default", at_ms=0, expected_tokens=10)) == "r2"


def test_a_replica_that_was_not_measured_gets_the_task_that_measures_it() -> None:
    _, replicas = fleet_of(
        ready("r1", perf_tokens_per_s=100, perf_first_token_ms=50, free_vram_mb=500),
        ready("r2", perf_tokens_per_s=10, perf_first_token_ms=50, free_vram_mb=900),
        ready("r3", free_vram_mb=700),
    )
    assert [picked(place(replicas, job(n))) for n in (1, 2, 3)] == ["r3", "r1", "r2"]


def test_speeds_that_differ_by_less_than_they_are_known_leave_the_choice_to_free_memory() -> None:
    _, replicas = fleet_of(
        ready("r1", perf_tokens_per_s=100, perf_first_token_ms=50, free_vram_mb=500),
        ready("r2", perf_tokens_per_s=96, perf_first_token_ms=52, free_vram_mb=600),
    )
    decision = place(replicas, job(1))
    assert picked(decision) == "r2"
    assert decision.log.tie_breakers_applied == ("predicted_end_ms", "free_vram_mb")


def test_kv_memory_is_needed_only_where_engines_take_it_as_tasks_come() -> None:
    per_token = 1 << 20
    _, replicas = fleet_of(ready("r1", free_vram_mb=511, kv_bytes_per_token=per_token), ready("r2", free_vram_mb=0))
    assert picked(place(replicas, job(1, ctx=512))) == "r2"
    assert replicas.kv_mb(request(2, ctx=512)) == 512
    decision = place(replicas, job(2, ctx=512))
    assert (picked(decision), decision.busy) == ("", True)
    assert decision.log.filters_applied == ("slots:1", "vram:1")
    assert picked(place(replicas, job(3, ctx=511))) == "r1"


def test_memory_of_tasks_that_no_report_knows_yet_is_reserved() -> None:
    fleet, replicas = fleet_of(ready("r1", slots=3, free_vram_mb=1_000, kv_bytes_per_token=1 << 20))
    first = job(1, ctx=600)
    assert picked(place(replicas, first)) == "r1"
    assert picked(place(replicas, job(2, ctx=600))) == ""
    replica = fleet.get("p1", "r1")
    assert replica is not None
    replica.report(ready("r1", slots=3, free_vram_mb=400, kv_bytes_per_token=1 << 20, active=(first.task_id,)))
    assert picked(place(replicas, job(3, ctx=400))) == "r1"


def test_a_pinned_task_that_nobody_can_serve_says_so() -> None:
    _, replicas = fleet_of(ready("r1", device="cuda:1"))
    wish = PlacementOverrides(mode=PlacementMode.PIN, pin_pool_id="p1", require_device_mask="cuda:0")
    log = place(replicas, job(1, placement=wish)).log
    assert (log.pinned, log.decision_reason) == (True, "pinned_pool_infeasible")


def test_a_pool_that_was_not_preferred_is_marked_as_a_fallback() -> None:
    _, replicas = fleet_of(ready("r1", slots=2))
    wish = PlacementOverrides(mode=PlacementMode.PREFER, prefer_pools=("another",))
    assert place(replicas, job(1, placement=wish)).log.fallback_used
    assert not place(replicas, job(2)).log.fallback_used


def test_quantisation_of_the_pool_is_kept_and_an_unknown_one_is_let_in() -> None:
    pool = msgspec.structs.replace(MIXED, quant="q4_k_m")
    _, replicas = fleet_of(ready("r1", quant="q8_0"), ready("r2", quant="q4_k_m"), ready("r3"), pool=pool)
    decisions = [place(replicas, job(n)) for n in (1, 2, 3)]
    assert [picked(each) for each in decisions] == ["r2", "r3", ""]
    assert decisions[0].log.filters_applied == ("quant:1",)


def test_a_task_that_needs_a_feature_goes_where_it_was_shown() -> None:
    _, replicas = fleet_of(ready("r1"), ready("r2", features=("interruptible_decode", "grammar")))
    shape = msgspec.structs.replace(replicas.shape_of(request(1)), extensions=("grammar",))
    assert replicas.can_take(shape)
    r1, r2 = replicas.get("r1"), replicas.get("r2")
    assert r1 is not None
    assert r2 is not None
    assert not replicas.could_take(shape, r1)
    assert replicas.could_take(shape, r2)


def test_nothing_can_be_placed_on_a_pool_that_is_not_wanted() -> None:
    _, replicas = fleet_of(ready("r1"))
    shape = replicas.shape_of(request(1))
    replicas.configure(None)
    assert not replicas.can_take(shape)
    assert not replicas.can_serve(shape)


# shapes


def test_tasks_have_few_shapes() -> None:
    pool = msgspec.structs.replace(spec(), ctx=6_000)
    shapes = {shape_of(request(n, ctx=n), pool) for n in range(1, 6_001)}
    assert sorted(shape.ctx for shape in shapes) == [256, 512, 1_024, 2_048, 4_096, 6_000]
    assert shape_of(request(1, ctx=6_001), pool).ctx == 8_192


def test_a_size_that_replicas_have_is_a_class_of_its_own() -> None:
    fleet, replicas = fleet_of(ready("r1", ctx_max=3_000))
    before = replicas.shapes_version
    assert replicas.shape_of(request(1, ctx=2_900)).ctx == 3_000
    assert picked(place(replicas, job(1, ctx=2_900))) == "r1"
    fleet.named("p1", "r2", 0).report(ready("r2", ctx_max=3_500))
    assert replicas.shape_of(request(1, ctx=3_200)).ctx == 3_500
    assert replicas.shapes_version > before, "tasks that wait as 4096 fit r2 as well"


def test_shapes_are_to_be_made_again_when_their_rules_change_and_only_then() -> None:
    _, replicas = fleet_of(ready("r1"))
    before = replicas.shapes_version
    replicas.configure(msgspec.structs.replace(spec(), affinity=AffinitySpec(ttl_ms=5)))
    assert replicas.shapes_version == before
    replicas.configure(msgspec.structs.replace(spec(), canary=CanarySpec(engine_version="v2", percent=10)))
    assert replicas.shapes_version == before + 1


def test_many_required_devices_do_not_fill_the_memory() -> None:
    _, replicas = fleet_of(ready("r1"))
    for number in range(5_000):
        assert not replicas.can_take(Shape(device=f"cuda:{number}"))
    assert len(replicas._feasibility._views) <= 1_024


@pytest.mark.parametrize("pool", [spec(), MIXED])
def test_the_order_in_which_replicas_were_seen_does_not_matter(pool: PoolSpec) -> None:
    records = [
        ready(f"r{n}", free_vram_mb=100 + n % 3, perf_tokens_per_s=20 + n % 4 * 30, perf_first_token_ms=50)
        for n in range(12)
    ]
    chosen = []
    for order in (records, records[::-1], records[5:] + records[:5]):
        _, replicas = fleet_of(*order, pool=pool)
        chosen.append([place(replicas, job(n)).log for n in range(12)])
    assert chosen[0] == chosen[1] == chosen[2]
