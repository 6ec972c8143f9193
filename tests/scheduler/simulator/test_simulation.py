"""The real core in the simulated cluster: what queueing theory says, and what must never happen."""

import pytest
from msgspec import structs

from llorch_scheduler.simulator.arrivals import Bursts, ClosedLoop, Poisson
from llorch_scheduler.simulator.scenario import Failure, ScenarioError
from llorch_scheduler.simulator.scenarios import SCENARIOS
from llorch_scheduler.simulator.scenarios import scenario as shipped
from llorch_scheduler.simulator.sizes import Exponential, LogNormal
from llorch_scheduler.simulator.summary import summarise
from llorch_shared.wire.task import Priority
from scheduler.simulator_scenarios import Watched, both_classes, flow, pool, scenario


def test_the_wait_of_one_server_with_random_work_is_what_theory_says() -> None:
    """M/M/1 with a mean service of 0.1 s and 5 arrivals a second: rho / (mu - lambda) = 0.5 / 5 s. Of 10,000 tasks the
    mean wait has a standard error of 4 %; 11 % are allowed."""
    one = scenario(pool(), flow(Poisson(5), output=Exponential(1_000)), tasks=10_000)
    simulation = Watched(one)
    result = summarise(simulation.run(), scale=1)
    assert result.classes[0].wait_ms.mean == pytest.approx(100.0, rel=0.11)
    assert result.utilisation == pytest.approx(0.5, rel=0.05)
    simulation.check_finished()


def test_servers_with_more_work_than_they_can_do_are_never_idle() -> None:
    """M/D/8 at one and a half times its capacity: full, and as productive as eight slots can be."""
    saturated = scenario(pool(replicas=4, slots=2), flow(Poisson(120)), tasks=3_000)
    result = summarise(Watched(saturated).run(), scale=1)
    assert result.utilisation > 0.99
    assert result.tokens_per_s == pytest.approx(8 * 10_000, rel=0.02)


def test_inside_a_class_tasks_start_in_the_order_they_were_admitted() -> None:
    simulation = Watched(scenario(pool(replicas=2, slots=2), *both_classes(50), tasks=1_500, store_ms=2.0))
    simulation.run()
    for priority in Priority:
        numbers = [task.number for task in simulation.starts if task.priority is priority]
        assert numbers == sorted(numbers)
    simulation.check_finished()


def test_interactive_tasks_go_before_batch_tasks() -> None:
    result = summarise(Watched(scenario(pool(replicas=2, slots=2), *both_classes(60), tasks=1_500)).run(), scale=1)
    interactive, batch = result.classes
    assert interactive.wait_ms.p95 < batch.wait_ms.p50


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SCENARIOS)
def test_in_every_scenario_each_task_ends_once(name: str, seed: int) -> None:
    scale = 0.01 if name == "fleet" else 1.0
    simulation = Watched(shipped(name, scale=scale, tasks=400), seed)
    result = summarise(simulation.run(), scale=scale)
    simulation.check_finished()
    assert sum(result.outcomes.values()) == result.arrived == 400
    assert result.outcomes["unfinished"] == 0
    assert sum(group.arrived for group in result.tenants) == 400


def test_tasks_of_a_lost_node_run_again_and_none_is_lost() -> None:
    lossy = scenario(
        pool(replicas=4, slots=2, nodes=2, load_ms=2_000.0),
        *both_classes(40, output=LogNormal(median=1_500, sigma=0.5, most=5_000)),
        tasks=1_500,
        store_ms=2.0,
        claim_ms=1.0,
        failures=(
            Failure(node="n0", at_s=5, back_after_s=10),
            Failure(node="n1", at_s=22, back_after_s=1),
            Failure(node="n0", at_s=30, back_after_s=5),
        ),
    )
    simulation = Watched(lossy)
    result = summarise(simulation.run(), scale=1)
    simulation.check_finished()
    assert sum(result.requeues.values()) > 0
    assert result.outcomes["done"] == 1_500
    assert len(simulation.starts) > 1_500, "nothing ran twice"


def test_a_node_that_never_returns_leaves_its_tasks_to_the_others() -> None:
    lossy = scenario(pool(replicas=2, nodes=2), flow(Poisson(10)), tasks=200, failures=(Failure(node="n0", at_s=3),))
    simulation = Watched(lossy)
    simulation.run()
    simulation.check_finished()
    assert simulation.measured.ready["p1"].value == 1


def test_when_every_node_is_gone_for_good_every_task_still_ends() -> None:
    dead = scenario(
        pool(replicas=2, nodes=2),
        flow(Poisson(30), deadlines_ms=(20_000,), patience_s=5.0),
        tasks=300,
        failures=(Failure(node="n0", at_s=3), Failure(node="n1", at_s=4)),
    )
    simulation = Watched(dead)
    result = summarise(simulation.run(), scale=1)
    simulation.check_finished()
    assert result.outcomes["expired"] > 0, "what was queued waits for its deadline"
    assert result.outcomes["gave_up"] > 0, "a pool without a replica refuses"
    assert result.pools[0].refusals == {"pool_unready": result.refusals}


def test_a_full_queue_refuses_and_clients_come_back_as_told() -> None:
    crowded = scenario(pool(capacity=5), flow(Poisson(20), patience_s=30.0), tasks=300)
    simulation = Watched(crowded)
    result = summarise(simulation.run(), scale=1)
    simulation.check_finished()
    assert simulation.measured.depth["p1", Priority.INTERACTIVE].peak == 5
    assert result.outcomes["gave_up"] > 0
    assert result.outcomes["done"] + result.outcomes["gave_up"] == 300
    assert 0 < result.returns.tries <= result.refusals
    assert result.returns.admitted >= 0.9 * result.returns.tries


def test_what_waits_past_its_deadline_expires_and_what_would_is_refused() -> None:
    late = scenario(pool(), flow(Poisson(20), deadlines_ms=(1_000,)), tasks=200)
    simulation = Watched(late)
    outcomes = summarise(simulation.run(), scale=1).outcomes
    simulation.check_finished()
    assert outcomes["expired"] > 0
    assert outcomes["infeasible"] > 0
    assert outcomes["done"] + outcomes["expired"] + outcomes["infeasible"] == 200


def test_a_closed_loop_never_has_more_tasks_than_users() -> None:
    loop = scenario(pool(slots=8), flow(ClosedLoop(users=3, think_s=0.05)), tasks=300)
    simulation = Watched(loop)
    simulation.run()
    simulation.check_finished()
    assert simulation.measured.busy["p1"].peak == 3


def test_bursts_bring_their_tasks_in_bursts() -> None:
    bursty = flow(Bursts(per_s=1, burst_per_s=50, every_s=20, lasts_s=2))
    simulation = Watched(scenario(pool(slots=100), bursty, tasks=500))
    simulation.run()
    inside = sum(task.arrived_ms % 20_000 < 2_000 for task in simulation.starts)
    assert inside / 500 == pytest.approx(100 / 118, abs=0.05)


def test_cold_replicas_take_tasks_once_they_are_loaded() -> None:
    cold = scenario(pool(warm=False, provision_ms=3_000.0, load_ms=2_000.0), flow(Poisson(5)), tasks=100)
    simulation = Watched(cold)
    simulation.run()
    simulation.check_finished()
    assert simulation.starts[0].started_ms == pytest.approx(5_000, abs=1)


def test_a_model_that_does_not_fit_is_told_before_anything_runs() -> None:
    plan = shipped("home").pools[0]
    with pytest.raises(ScenarioError, match="MB more than"):
        plan.free_vram_mb(structs.replace(plan.replicas[0], slots=64))


def test_an_unknown_flow_target_is_told() -> None:
    with pytest.raises(ScenarioError, match="which is not there"):
        Watched(scenario(pool(), *shipped("team").flows, tasks=1))
