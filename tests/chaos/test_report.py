"""What the report makes of a history and of the faults that were made."""

from chaos import report
from chaos.checks import check
from chaos.history import Closed, Entry, Opened
from chaos.nemesis import Injected
from chaos.plan import Fault, FaultKind
from chaos.samples import T0, TASK, World


def injected(began: float, *, skipped: str = "") -> Injected:
    fault = Fault(at_s=began, kind=FaultKind.CUT, target="gateway-1", lasts_s=1)
    return Injected(fault=fault, began=T0 + began, over=T0 + began + 1, skipped=skipped)


def made_of(world: World, *faults: Injected) -> report.Report:
    evidence = world.evidence()
    return report.make_report(
        seed=1, seconds=9, kinds=[FaultKind.CUT], injected=faults, evidence=evidence, violations=check(evidence)
    )


def test_recovery_is_from_the_fault_to_what_was_asked_for_after_it() -> None:
    told = made_of(World(), injected(-1.0), injected(0.05), injected(5, skipped="no disk"))
    recovery = told.faults["cut"]
    assert (recovery.made, recovery.skipped) == (2, 1)
    assert recovery.accepted_ms == (1100, 1100), "the task was asked for before the second fault"
    assert recovery.first_token_ms == (1450, 2500)


def test_a_gap_begins_with_a_lost_connection_and_not_with_a_reader_that_leaves() -> None:
    world = World()
    tokens = world.entries[5]
    broken: list[Entry] = [
        world.tokens(0, 1, at=1.1),
        Closed(at=T0 + 1.2, reader=2, task=TASK, why="StreamCut"),
        Opened(at=T0 + 1.3, reader=2, task=TASK, via="gateway-2"),
        Closed(at=T0 + 1.4, reader=2, task=TASK, why="StreamCut"),
        Opened(at=T0 + 1.5, reader=2, task=TASK, via="gateway-3"),
        world.tokens(2, 3, 4, at=1.6),
    ]
    at = world.entries.index(tokens)
    world.entries[at : at + 1] = broken
    assert made_of(world).resume_gap_ms == (400, 400)
    world.entries[at + 1] = Closed(at=T0 + 1.2, reader=2, task=TASK, why="left after 2")
    assert made_of(world).resume_gap_ms == (200, 200)


def test_operations_tasks_and_tokens_are_counted_and_shown() -> None:
    world = World()
    told = made_of(world)
    assert told.operations == {"submit accepted": 1}
    assert told.tasks == {"done": 1}
    assert (told.tokens_read, told.connections, told.violations) == (5, 1, ())
    shown = report.text(told)
    assert "violations  0" in shown
    assert shown.endswith("again       make chaos SEED=1 SECONDS=9 FAULTS=cut")


def test_violations_are_shown_by_kind_and_one_by_one() -> None:
    world = World()
    world.run = None
    shown = report.text(made_of(world))
    assert "  lost: 1\n" in shown
    assert f"    lost  {TASK}  accepted, and no run record" in shown


def test_percentiles_are_by_nearest_rank() -> None:
    assert report.percentiles([]) is None
    assert report.percentiles([0.001]) == (1, 1)
    assert report.percentiles([number / 1000 for number in range(1, 101)]) == (50, 100)
