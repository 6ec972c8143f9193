"""Which replicas a node should run, on which devices, and what must change."""

from typing import Any, get_args

import msgspec

from llorch_poold.core.devices import DeviceMask, DeviceRefusal, mask_of
from llorch_poold.core.reconcile import (
    Changes,
    Desired,
    Place,
    Present,
    Start,
    Why,
    changes,
    desired_places,
    drain_label,
)
from llorch_shared.wire import policy
from llorch_shared.wire.registry import Gpu
from llorch_shared.wire.spec import PoolSpec

GPUS = (
    Gpu(index=0, uuid="GPU-a", name="x", vram_total_mb=24_000, vram_free_mb=23_000),
    Gpu(index=1, uuid="GPU-b", name="y", vram_total_mb=12_000, vram_free_mb=11_000),
)
LOST = Gpu(index=1, uuid="", name="", vram_total_mb=0, vram_free_mb=0, fault="lost")


def pool(**fields: Any) -> PoolSpec:
    return msgspec.convert({"id": "p", "engine": "llamacpp", "model": "file:/m.gguf", **fields}, PoolSpec)


def wanted(
    *specs: PoolSpec, gpus: tuple[Gpu, ...] = GPUS, problem: str = "", profile: str = "gpu"
) -> dict[str, Desired]:
    places = desired_places(specs, node_id="n1", gpus=gpus, gpu_problem=problem, profile=profile)
    return {name: place.now for name, place in places.items()}


def moved(actual: dict[str, Desired], to: dict[str, Desired]) -> Changes:
    """From replicas that serve, one at each place, to other wishes."""
    return changes([Present(name, desired) for name, desired in actual.items()], {n: Place(d) for n, d in to.items()})


def test_a_drain_has_a_label_whatever_its_reason() -> None:
    assert [drain_label(reason) for reason in (Why.DRAINED, "its specification changed", "SIGTERM")] == [
        "drained",
        "changed",
        "node_stops",
    ]


def test_a_pool_gets_its_replicas_on_every_node_it_does_not_exclude() -> None:
    assert list(wanted(pool(replicas=2), pool(id="q", nodes=["n2"]))) == ["p-n1-1", "p-n1-2"]


def test_all_devices_are_one_mask_without_the_faulty_ones() -> None:
    assert wanted(pool())["p-n1-1"].device == DeviceMask("cuda:0,1", ("GPU-a", "GPU-b"))
    assert wanted(pool(), gpus=(GPUS[0], LOST))["p-n1-1"].device == DeviceMask("cuda:0", ("GPU-a",))


def test_named_devices_are_never_replaced_by_others() -> None:
    assert wanted(pool(devices=[1]))["p-n1-1"].device.uuids == ("GPU-b",)
    assert "no GPU 3" in wanted(pool(devices=[3]))["p-n1-1"].refusal
    assert "lost" in wanted(pool(devices=[1]), gpus=(GPUS[0], LOST))["p-n1-1"].refusal


def test_without_a_gpu_nothing_falls_back_to_the_cpu() -> None:
    refusal = wanted(pool(), gpus=(), problem="no driver")["p-n1-1"].refusal
    assert "no driver" in refusal
    assert "ORCH-1102" in refusal


def test_the_cpu_is_refused_unless_the_profile_is_ci() -> None:
    assert "ORCH-1102" in wanted(pool(devices="cpu"))["p-n1-1"].refusal
    allowed = wanted(pool(devices="cpu"), gpus=(), problem="no driver", profile="ci")["p-n1-1"]
    assert (allowed.refusal, allowed.device.label) == ("", "cpu")
    assert isinstance(mask_of((), gpus=GPUS, gpu_problem="", profile="ci"), DeviceRefusal)


POLICIES: dict[str, Any] = {
    "queue": {"capacity": 7, "full_policy": "drop-lru"},
    "admission": {"fairness": {"tenants": [{"id": "acme", "weight": 5}]}},
    "deadlines": {"evict": "expiry"},
    "preemption": {"mode": "hard"},
    "affinity": {"ttl_ms": 0},
    "canary": {"engine_version": "2", "percent": 5},
    "breaker": {"start_ms": 1000},
    "waiting": {"load_ms": 1},
}


def test_no_key_of_the_scheduling_policy_restarts_an_engine() -> None:
    """REQUIREMENTS section 7: a policy changes while tasks run."""
    of_the_policy = {
        field.name
        for field in msgspec.structs.fields(PoolSpec)
        if any(getattr(part, "__module__", "") == policy.__name__ for part in (field.type, *get_args(field.type)))
    }
    assert of_the_policy == POLICIES.keys()
    actual = wanted(pool())
    for key, value in (*POLICIES.items(), ("require_same_engine_version", False)):
        other = wanted(pool(**{key: value}))
        assert moved(actual, other) == Changes(adopt=tuple(other.values())), key


def test_a_new_model_restarts_and_a_new_queue_does_not() -> None:
    actual = wanted(pool(replicas=2))
    other_model = wanted(pool(replicas=2, model="file:/other.gguf"))
    other_queue = wanted(pool(replicas=2, queue={"capacity": 7}, timeouts={"idle_ms": 5}))
    assert moved(actual, other_model) == Changes(stop=(("p-n1-1", Why.CHANGED), ("p-n1-2", Why.CHANGED)))
    assert moved(actual, other_queue) == Changes(adopt=tuple(other_queue.values()))
    assert moved(actual, actual) == Changes()


def test_a_replica_is_started_only_when_the_one_before_it_is_gone() -> None:
    old, new = wanted(pool())["p-n1-1"], wanted(pool(slots=2))["p-n1-1"]
    places = {"p-n1-1": Place(new)}
    assert changes([Present("p-n1-1", old, leaving=True)], places) == Changes()
    assert changes([], places) == Changes(start=(Start(new, "p-n1-1"),))


def test_fewer_replicas_stop_the_last_one_and_touch_no_other() -> None:
    assert moved(wanted(pool(replicas=3)), wanted(pool(replicas=2))) == Changes(
        stop=(("p-n1-3", Why.UNWANTED),), adopt=tuple(wanted(pool(replicas=2)).values())
    )


def test_a_drained_pool_has_no_replicas_until_it_is_undrained() -> None:
    actual = wanted(pool())
    drained = desired_places([pool()], node_id="n1", gpus=GPUS, gpu_problem="", profile="gpu", drained={"p"})
    present = [Present(name, desired) for name, desired in actual.items()]
    assert changes(present, drained) == Changes(stop=(("p-n1-1", Why.UNWANTED),))
    assert moved({}, actual) == Changes(start=(Start(actual["p-n1-1"], "p-n1-1"),))


def test_a_gpu_that_comes_back_starts_what_was_refused() -> None:
    before = wanted(pool(), gpus=(), problem="driver not loaded")
    after = wanted(pool())
    assert moved(before, after) == Changes(stop=(("p-n1-1", Why.CHANGED),))
    assert moved({}, after) == Changes(start=(Start(after["p-n1-1"], "p-n1-1"),))
