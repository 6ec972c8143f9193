"""Which pool serves a task."""

from typing import Any

import pytest

from llorch_shared.errors import ErrorCode, OrchError
from llorch_shared.routing import route
from llorch_shared.wire.registry import ClassLoad, ReplicaRecord, ReplicaState
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import PlacementMode, PlacementOverrides, TaskRequest, Workload
from support.client import task_request
from support.gateways import load_report, pool_spec, replica

BUSY = load_report("a", slots_free=0, queued={"interactive": 9}, service_ms=1000)
IDLE = load_report("b")


def world(*specs: PoolSpec, records: tuple[ReplicaRecord, ...] | None = None) -> tuple[Any, Any]:
    records = tuple(replica(spec.id) for spec in specs) if records is None else records
    by_pool: dict[str, list[ReplicaRecord]] = {}
    for record in records:
        by_pool.setdefault(record.pool_id, []).append(record)
    return {spec.id: spec for spec in specs}, by_pool


def chosen(request: TaskRequest, pools: Any, replicas: Any, *loads: Any) -> str:
    return route(request, pools, replicas, {load.pool_id: load for load in loads}, tenant="t").id


def refusal(request: TaskRequest, pools: Any, replicas: Any) -> OrchError:
    with pytest.raises(OrchError) as refused:
        route(request, pools, replicas, {}, tenant="t")
    return refused.value


def placed(**wish: Any) -> TaskRequest:
    return task_request(placement=PlacementOverrides(**wish))


def test_the_pool_with_the_shortest_wait_wins_and_names_break_ties() -> None:
    both = world(pool_spec("b"), pool_spec("a"))
    assert chosen(task_request(), *both, BUSY, IDLE) == "b"
    assert chosen(task_request(), *both) == "a"
    assert chosen(task_request(), *both, BUSY) == "a"


def test_an_unknown_model_engine_or_too_large_a_context_can_never_be_served() -> None:
    one = world(pool_spec("a", ctx=1024))
    for request in (task_request(model_ref="x"), task_request(engine="vllm"), task_request(ctx=1025)):
        assert refusal(request, *one).code is ErrorCode.INVALID_PARAMS
    assert chosen(task_request(ctx=1024), *one) == "a"


def test_a_context_is_served_by_the_pool_that_has_it() -> None:
    assert chosen(task_request(ctx=3000), *world(pool_spec("a", ctx=2048), pool_spec("b", ctx=4096))) == "b"


def test_a_pool_without_a_live_record_is_not_ready() -> None:
    refused = refusal(task_request(), *world(pool_spec("a"), records=()))
    assert (refused.code, refused.body.pool_id, refused.body.retriable) == (ErrorCode.POOL_UNREADY, "a", True)


@pytest.mark.parametrize("state", [state for state in ReplicaState if state is not ReplicaState.FAILED])
def test_a_replica_in_any_state_but_failed_lets_tasks_wait(state: ReplicaState) -> None:
    records = (replica("a", state=state), replica("a", 1, state=ReplicaState.FAILED))
    assert chosen(task_request(), *world(pool_spec("a"), records=records)) == "a"


def test_a_pool_whose_replicas_have_all_failed_is_unavailable() -> None:
    records = (replica("a", state=ReplicaState.FAILED, last_error="out of memory"),)
    refused = refusal(task_request(), *world(pool_spec("a"), records=records))
    assert refused.code is ErrorCode.REPLICA_EXHAUSTED
    assert "out of memory" in refused.body.message


def test_a_pool_whose_model_no_node_may_load_is_untrusted() -> None:
    refused = {"state": ReplicaState.FAILED, "refused": "UNTRUSTED_ARTIFACT", "last_error": "UNTRUSTED_ARTIFACT: why"}
    told = refusal(task_request(), *world(pool_spec("a"), records=(replica("a", **refused),)))
    assert (told.code, told.body.pool_id) == (ErrorCode.UNTRUSTED_ARTIFACT, "a")
    assert told.body.message == "no node may load the model of pool a: why"
    one_broke = (replica("a", **refused), replica("a", 2, state=ReplicaState.FAILED))
    assert refusal(task_request(), *world(pool_spec("a"), records=one_broke)).code is ErrorCode.REPLICA_EXHAUSTED


def test_a_dead_pool_leaves_the_task_to_a_live_one() -> None:
    assert chosen(task_request(), *world(pool_spec("a"), pool_spec("b"), records=(replica("b"),))) == "b"


def test_a_workload_goes_to_a_pool_that_serves_it() -> None:
    request = task_request(workload=Workload.EMBEDDING, prompt=None, inputs=("x",))
    records = (replica("a"), replica("b", workloads=(Workload.EMBEDDING,)))
    assert chosen(request, *world(pool_spec("a"), pool_spec("b"), records=records)) == "b"
    assert refusal(request, *world(pool_spec("a"))).code is ErrorCode.INVALID_PARAMS


def test_a_pin_is_kept_or_refused_and_never_replaced() -> None:
    both = world(pool_spec("a"), pool_spec("b"))
    assert chosen(placed(mode=PlacementMode.PIN, pin_pool_id="a"), *both, BUSY, IDLE) == "a"
    assert refusal(placed(mode=PlacementMode.PIN, pin_pool_id="c"), *both).code is ErrorCode.INVALID_PARAMS
    assert refusal(placed(mode=PlacementMode.PIN), *both).code is ErrorCode.INVALID_PARAMS
    dead = world(pool_spec("a"), pool_spec("b"), records=(replica("b"),))
    refused = refusal(placed(mode=PlacementMode.PIN, pin_pool_id="a"), *dead)
    assert (refused.code, refused.body.policy_label) == (ErrorCode.POOL_UNREADY, "pinned_pool_infeasible")


def test_a_preference_widens_only_when_that_is_allowed() -> None:
    both = world(pool_spec("a"), pool_spec("b"))
    assert chosen(placed(mode=PlacementMode.PREFER, prefer_pools=("a",)), *both, BUSY, IDLE) == "a"
    assert chosen(placed(mode=PlacementMode.PREFER, prefer_pools=("c",)), *both, IDLE) == "b"
    strict = placed(mode=PlacementMode.PREFER, prefer_pools=("c",), allow_fallback=False)
    refused = refusal(strict, *both)
    assert (refused.code, refused.body.policy_label) == (ErrorCode.INVALID_PARAMS, "no_preferred_feasible")


def test_a_refusal_that_no_wish_caused_names_none() -> None:
    assert refusal(task_request(model_ref="x"), *world(pool_spec("a"))).body.policy_label is None


def test_a_pool_that_sheds_the_class_is_the_last_choice() -> None:
    both = world(pool_spec("a"), pool_spec("b"))
    shedding = ClassLoad(queued=0, work_ms=0, weight=8, flows_weight=0, shed="late", shed_for_ms=5_000)
    loads = (load_report("b", classes={"interactive": shedding}), BUSY)
    assert chosen(task_request(), *both, *loads) == "a"
    assert chosen(task_request(priority="batch"), *both, *loads) == "b"
    assert chosen(placed(mode=PlacementMode.PIN, pin_pool_id="b"), *both, *loads) == "b"


def test_avoided_pools_are_left_out() -> None:
    both = world(pool_spec("a"), pool_spec("b"))
    assert chosen(placed(avoid_pools=("a",)), *both) == "b"
    assert refusal(placed(avoid_pools=("a", "b")), *both).code is ErrorCode.INVALID_PARAMS


def test_a_required_device_mask_is_exact() -> None:
    records = (replica("a", device="cuda:0"), replica("b", device="cuda:1"))
    both = world(pool_spec("a"), pool_spec("b"), records=records)
    assert chosen(placed(require_device_mask="cuda:1"), *both) == "b"
    assert refusal(placed(require_device_mask="cuda:2"), *both).code is ErrorCode.INVALID_PARAMS
    nobody = world(pool_spec("a"), records=())
    assert refusal(placed(require_device_mask="cuda:1"), *nobody).code is ErrorCode.POOL_UNREADY


def test_a_required_device_whose_replica_failed_is_not_served_by_another_device() -> None:
    failed = replica("a", device="cuda:1", state=ReplicaState.FAILED)
    one = world(pool_spec("a"), records=(replica("a", 1, device="cuda:0"), failed))
    assert refusal(placed(require_device_mask="cuda:1"), *one).code is ErrorCode.REPLICA_EXHAUSTED
    other = world(pool_spec("a"), pool_spec("b"), records=(failed, replica("b", device="cuda:1")))
    assert chosen(placed(require_device_mask="cuda:1"), *other) == "b"
