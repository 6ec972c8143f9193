"""What the policy promises, shown in the shipped scenarios with fewer tasks: shares, deadlines, waits, returns."""

from functools import cache

import pytest

from llorch_scheduler.simulator.arrivals import Poisson
from llorch_scheduler.simulator.cards import BATCH, INTERACTIVE, card, chat, jobs, pool
from llorch_scheduler.simulator.fairness import jain_of, minutes
from llorch_scheduler.simulator.scenario import Scenario
from llorch_scheduler.simulator.scenarios import scenario as shipped
from llorch_scheduler.simulator.sizes import Fixed
from llorch_scheduler.simulator.summary import summarise
from llorch_shared.wire.policy import HardRequirements, PreemptionSpec, QueueSpec
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.simulated import Result
from llorch_shared.wire.task import TaskState
from scheduler.simulator_scenarios import Watched


@cache
def simulated(name: str, tasks: int, seed: int = 1) -> tuple[Watched, Result]:
    simulation = Watched(shipped(name, tasks=tasks), seed)
    result = summarise(simulation.run(), scale=1)
    simulation.check_finished()
    return simulation, result


def test_a_noisy_neighbour_takes_nothing_from_a_quiet_one() -> None:
    """50:1. Judged over minutes, after the first, while both have more than they can get: the noisy one is there first,
    and what runs is not stopped."""
    simulation, result = simulated("noisy-neighbour", 12_000)
    busy_s = simulation.clock.now_ms / 1000
    arriving = [window for window in minutes(simulation.measured.shares.windows) if 60_000 < window.end_ms <= 110_000]
    assert busy_s > 110
    indices = [jain_of(window, simulation.specs, INTERACTIVE) for window in arriving]
    assert len(indices) >= 4
    assert all(index is not None and index >= 0.95 for index in indices), indices
    quiet = next(group for group in result.tenants if group.name == "quiet")
    assert quiet.gave_up == 0
    assert result.fairness[0].share_deviation < 0.06, "of a run of two minutes, in which the noisy one took the lead"
    assert result.returns.tries > 0
    assert result.returns.admitted >= 0.9 * result.returns.tries


def test_a_tenant_at_its_own_bound_is_admitted_when_it_returns_as_told() -> None:
    bound = pool("p", card("n0"), card("n1"), queue=QueueSpec(capacity=128, tenant_capacity=64))
    flows = chat("quiet", "p", 1.0), chat("noisy", "p", 20.0, patience_s=600)
    simulation = Watched(Scenario(name="bound", about="", pools=(bound,), flows=flows, tasks=8_000))
    result = summarise(simulation.run(), scale=1)
    quiet = next(group for group in result.tenants if group.name == "quiet")
    assert (quiet.sent_away, quiet.gave_up) == (0, 0)
    assert result.returns.tries > 300
    assert result.returns.admitted >= 0.9 * result.returns.tries


def test_the_only_tenant_of_a_queue_is_admitted_when_it_returns_as_told() -> None:
    busy = pool("p", card("n0"), card("n1"), queue=QueueSpec(capacity=64))
    simulation = Watched(
        Scenario(name="alone", about="", pools=(busy,), flows=(chat("only", "p", 20.0, patience_s=600),), tasks=4_000)
    )
    returns = summarise(simulation.run(), scale=1).returns
    assert returns.promised > 200
    assert returns.admitted >= 0.9 * returns.tries


def test_admitted_deadlines_are_met_and_the_others_are_told_at_once() -> None:
    _, result = simulated("deadline-mix", 5_000)
    assert result.outcomes["infeasible"] > 0, "nothing was ever too late, so little was shown"
    for group in result.classes:
        assert group.met >= 0.99
    assert result.utilisation > 0.7, "it is easy to be in time with idle slots"


def test_at_ten_times_the_load_waits_are_told_well_and_returns_are_admitted() -> None:
    """The first minute is left out of neither: nothing is known then, and it counts."""
    simulation, result = simulated("overload", 16_000)
    assert result.prediction.error_median_ratio <= 0.20
    assert result.returns.tries > 100
    assert result.returns.admitted >= 0.9 * result.returns.tries
    arriving = [
        used
        for at_s, used in zip(result.series.at_s, result.series.utilisation["busy"], strict=True)
        if used is not None and at_s < max(task.arrived_ms for task in simulation.starts) / 1000 - 60
    ]
    assert sum(arriving) / len(arriving) > 0.97, "slots were idle while clients were sent away"


def test_a_canary_gets_its_part_of_the_sessions_and_one_step_takes_it_back() -> None:
    simulation, result = simulated("canary", 3_600)
    before = [task for task in simulation.starts if task.arrived_ms < 600_000]
    after = [task for task in simulation.starts if task.arrived_ms > 600_000]
    on_canary = {task.number for task in before if simulation.versions[task.number] == "v2"}
    assert len(on_canary) / len(before) == pytest.approx(0.10, abs=0.03)
    sides: dict[str, set[str]] = {}
    for task in before:
        sides.setdefault(task.session, set()).add(simulation.versions[task.number])
    assert all(len(side) == 1 for side in sides.values()), "a session changed sides"
    assert after
    assert all(simulation.versions[task.number] == "v1" for task in after)
    assert result.outcomes["done"] == 3_600


def test_a_lost_node_loses_no_task() -> None:
    _, result = simulated("node-loss", 3_600)
    assert sum(result.requeues.values()) > 0
    assert result.outcomes["done"] == result.arrived


def test_interactive_tasks_wait_for_no_more_than_the_shares_say_behind_a_flood_of_jobs() -> None:
    """Priority inversion is bounded: with a free slot every `service / slots`, and eight of nine starts for it, an
    interactive task never waits for more than a few of them however many jobs wait."""
    flood = Scenario(
        name="flood",
        about="",
        pools=(pool("p", card("n0"), card("n1")),),
        flows=(
            chat("people", "p", 0.5, max_tokens=200, output=Fixed(200)),
            jobs("jobs", "p", 0, arrivals=Poisson(20), output=Fixed(300), max_tokens=300, patience_s=5),
        ),
        tasks=4_000,
    )
    simulation = Watched(flood)
    result = summarise(simulation.run(), scale=1)
    interactive, batch = result.classes
    assert batch.wait_ms.p50 > 30_000, "the jobs did not pile up"
    assert interactive.wait_ms.p95 < 2_000
    assert interactive.wait_ms.most < 5_000


def test_with_hard_preemption_an_urgent_task_takes_a_slot_and_the_victim_still_ends() -> None:
    hard = PreemptionSpec(mode="hard", hard_requirements=HardRequirements(max_preemptions_per_min=60))
    plan = pool("p", card("n0", slots=4, features=("interruptible_decode",)), preemption=hard)
    long = jobs("jobs", "p", 0, arrivals=Poisson(0.2), output=Fixed(2_000), max_tokens=2_000)
    urgent = chat("urgent", "p", 0.05, output=Fixed(50), max_tokens=50, deadlines_ms=(6_000,))
    simulation = Watched(Scenario(name="hard", about="", pools=(plan,), flows=(long, urgent), tasks=60))
    result = summarise(simulation.run(), scale=1)
    simulation.check_finished()
    interactive, batch = result.classes
    assert result.preemptions > 0
    assert interactive.preempted == 0
    assert result.outcomes["infeasible"] == 0, "a batch task would have been stopped"
    assert interactive.met > 0.9
    assert batch.done + batch.unfinished == batch.arrived
    assert any(record.preemptions for record in simulation.finals)


def test_without_the_proof_nothing_is_ever_stopped() -> None:
    hard = PreemptionSpec(mode="hard", hard_requirements=HardRequirements(max_preemptions_per_min=60))
    plan = pool("p", card("n0", slots=4), preemption=hard)
    long = jobs("jobs", "p", 0, arrivals=Poisson(0.2), output=Fixed(2_000), max_tokens=2_000)
    urgent = chat("urgent", "p", 0.05, output=Fixed(50), max_tokens=50, deadlines_ms=(6_000,))
    simulation = Watched(Scenario(name="soft", about="", pools=(plan,), flows=(long, urgent), tasks=60))
    assert summarise(simulation.run(), scale=1).preemptions == 0


def test_preempted_records_name_no_replica_and_count_no_lost_attempt() -> None:
    record = _first_preempted()
    assert record.state is TaskState.DONE
    assert record.attempt == 1 + record.preemptions


def _first_preempted() -> RunRecord:
    hard = PreemptionSpec(mode="hard", hard_requirements=HardRequirements(max_preemptions_per_min=60))
    plan = pool("p", card("n0", slots=1, features=("interruptible_decode",)), preemption=hard)
    long = jobs("jobs", "p", 0, arrivals=Poisson(0.1), output=Fixed(1_000), max_tokens=1_000)
    urgent = chat("urgent", "p", 0.1, output=Fixed(20), max_tokens=20, deadlines_ms=(4_000,))
    simulation = Watched(Scenario(name="one", about="", pools=(plan,), flows=(long, urgent), tasks=40))
    simulation.run()
    assert simulation.measured.preempted.total() > 0
    assert simulation.measured.preempted["jobs", BATCH] == simulation.measured.preempted.total()
    return next(record for record in simulation.finals if record.preemptions)
