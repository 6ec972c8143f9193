"""What a drill asks and breaks, and how its figures are read from what was seen."""

from itertools import pairwise

import msgspec
import pytest

from chaos.asks import Way
from chaos.checks import check
from chaos.drills import DRILLS
from chaos.evidence import Evidence
from chaos.goals import Goal, cluster_goals, gateways_goals, ids_goals, schedulers_goals
from chaos.history import Closed, Opened, RunSeen
from chaos.leases import LeaseSeen, takeovers
from chaos.nemesis import Injected
from chaos.plan import LEADER_OF, Fault, FaultKind
from chaos.run import Planned
from chaos.samples import T0, TASK, WORDS, World
from chaos.violations import Kind
from llorch_shared import subjects
from llorch_shared.bus.nats_watch import ALONE_S
from llorch_shared.wire.audit import AuditEvent
from llorch_shared.wire.task import Determinism
from support.client import task_request

SHARD = subjects.shard_of("a")


def leases(*seen: tuple[float, str], shard: int = SHARD) -> list[LeaseSeen]:
    return [LeaseSeen(at=T0 + at, shard=shard, holder=holder, given_back=not holder) for at, holder in seen]


def killed(at: float, target: str) -> Injected:
    fault = Fault(at_s=at, kind=FaultKind.KILL, target=target)
    return Injected(fault=fault, began=T0 + at, over=T0 + at + 1)


def planned(faults: tuple[Fault, ...] = ()) -> Planned:
    """Of the one task of the sample world."""
    whole = DRILLS["ids"].plan(1, 0.002)
    ask = msgspec.structs.replace(whole.asks[0], request=task_request(task_id=TASK, max_tokens=5))
    return msgspec.structs.replace(whole, asks=(ask,), faults=faults)


def missed(goals: list[Goal]) -> list[str]:
    return [goal.what for goal in goals if goal.reached is False]


def evidence_of(world: World) -> Evidence:
    evidence = world.evidence()
    assert check(evidence) == []
    return evidence


@pytest.mark.parametrize("name", DRILLS)
def test_a_drill_follows_from_its_seed(name: str) -> None:
    plan = DRILLS[name].plan
    assert plan(3, 0.1) == plan(3, 0.1)
    assert plan(3, 0.1) != plan(4, 0.1)


def test_the_drills_are_as_large_as_what_is_promised() -> None:
    gateways, ids, schedulers = (DRILLS[name].plan(1, 1) for name in ("gateways", "ids", "schedulers"))
    assert len(gateways.asks) == 500
    assert {ask.request.max_tokens for ask in gateways.asks} == {400}
    at = [fault.at_s for fault in gateways.faults if fault.target.startswith("gateway")]
    assert len(at) >= 10
    assert {round(after - before, 3) for before, after in pairwise(at)} == {5.0}
    assert sum(fault.target.startswith("poold") for fault in gateways.faults) == 1
    assert gateways.stage.slots * 2 >= 2 * len(gateways.asks), "one node can take them all"
    assert len({ask.request.task_id for ask in ids.asks}) == 10_000
    assert all(ask.way is Way.TWICE and ask.doors == 3 for ask in ids.asks)
    assert len(schedulers.asks) == 10_000
    assert [fault.kind for fault in schedulers.faults] == [FaultKind.KILL] * 20
    assert {fault.target for fault in schedulers.faults} == {"scheduler-1", "scheduler-2"}


def test_a_cluster_loses_one_server_at_a_time() -> None:
    plan = DRILLS["cluster"].plan(1, 1)
    assert plan.stage.servers == 3
    assert [fault.kind for fault in plan.faults] == [FaultKind.CUT] * 2 + [FaultKind.NATS_KILL] * 4 + [FaultKind.CUT]
    assert all(fault.target.startswith(LEADER_OF) for fault in plan.faults)
    for before, after in pairwise(plan.faults):
        assert before.at_s + before.lasts_s < after.at_s
    assert plan.faults[-1].at_s + plan.faults[-1].lasts_s < plan.seconds
    assert plan.faults[-1].lasts_s > ALONE_S, "processes leave a server that is cut off"


def test_a_task_that_a_cluster_charges_twice_misses_the_goal() -> None:
    world = World()
    world.audits[-1] = world.audit(AuditEvent.DONE, 12, detail={"tokens_out": 5})
    world.audits.insert(0, world.audit(AuditEvent.ADMITTED, 0))
    assert missed(cluster_goals(planned(), evidence_of(world), [], [])) == []
    world.audits.append(world.audit(AuditEvent.DONE, 13, detail={"tokens_out": 5}))
    assert missed(cluster_goals(planned(), world.evidence(), [], [])) == ["tasks with one charge"]


def test_a_takeover_lasts_from_the_kill_to_the_next_holder() -> None:
    seen = leases((0, "old"), (0.5, "old"), (1.0, "old"), (1.6, "new"), (2.1, "new"))
    (found,) = takeovers([T0 + 1.2], seen)
    assert (found.shard, found.killed) == (SHARD, T0 + 1.2)
    assert found.leased_s == pytest.approx(0.4)


def test_a_lease_that_expired_first_is_taken_over_by_the_next_holder() -> None:
    seen = leases((0, "old"), (0.5, "old"), (4.0, "new"))
    seen.insert(2, LeaseSeen(at=T0 + 3, shard=SHARD, holder=""))
    assert [each.leased_s for each in takeovers([T0 + 1], seen)] == [pytest.approx(3.0)]


def test_a_lease_that_was_given_back_while_another_was_killed_is_no_takeover() -> None:
    assert takeovers([T0 + 0.7], leases((0, "old"), (0.5, "old"), (0.9, ""), (1.0, "new"))) == []


def test_a_shard_that_nobody_took_over_is_told() -> None:
    seen = [*leases((0, "old"), (0.5, "old")), LeaseSeen(at=T0 + 3, shard=SHARD, holder="")]
    found = takeovers([T0 + 1], seen)
    assert [each.leased_s for each in found] == [None]
    goals = schedulers_goals(planned(), evidence_of(World()), [killed(1, "scheduler-1")], seen)
    assert "shards taken over after a kill" in missed(goals)


def test_a_slow_takeover_misses_its_goal_and_a_quick_one_does_not() -> None:
    world = World()
    world.entries[3] = RunSeen(at=T0 + 0.9, task=TASK, seq=10, state="placed", attempt=1)
    plan = planned(faults=(killed(0.1, "scheduler-1").fault,))
    quick = leases((-0.5, "old"), (0, "old"), (0.5, "new"), (1.0, "new"))
    slow = leases((-0.5, "old"), (0, "old"), (1.8, "new"), (2.0, "new"))
    assert missed(schedulers_goals(plan, evidence_of(world), [killed(0.1, "scheduler-1")], quick)) == []
    found = missed(schedulers_goals(plan, evidence_of(world), [killed(0.1, "scheduler-1")], slow))
    assert any("next lease" in what for what in found)


def test_an_id_that_is_admitted_or_charged_twice_or_not_at_all_misses_the_goal() -> None:
    world = World()
    world.audits[-1] = world.audit(AuditEvent.DONE, 12, detail={"tokens_out": 5})
    assert missed(ids_goals(planned(), world.evidence(), [], [])) == ["tasks with one admission on the record"]
    world.audits.insert(0, world.audit(AuditEvent.ADMITTED, 0))
    assert missed(ids_goals(planned(), evidence_of(world), [], [])) == []
    world.audits.append(world.audit(AuditEvent.DONE, 13, detail={"tokens_out": 5}))
    assert missed(ids_goals(planned(), world.evidence(), [], [])) == ["tasks with one charge", "tokens charged"]


def reconnecting(gap_s: float) -> World:
    """Its reader loses the connection after two tokens, and has the third `gap_s` later."""
    world = World()
    world.entries[5:6] = [
        world.tokens(0, 1, at=1.2),
        Closed(at=T0 + 1.2, reader=2, task=TASK, why="closed before its end"),
        Opened(at=T0 + 1.25, reader=2, task=TASK, via="gateway-2", cursor="1"),
        world.tokens(2, 3, 4, at=1.2 + gap_s),
    ]
    world.entries[-1] = msgspec.structs.replace(world.entries[-1], at=T0 + 5)
    return world


def test_a_reader_that_waits_too_long_after_its_gateway_died_misses_the_goal() -> None:
    assert missed(gateways_goals(planned(), evidence_of(reconnecting(0.3)), [], [])) == []
    found = missed(gateways_goals(planned(), evidence_of(reconnecting(1.2)), [], []))
    assert found == ["resume gap, from the loss of a connection to the next event, p50 / p99 ms"]


def test_a_real_engines_text_is_what_it_says_when_nothing_is_broken() -> None:
    plan = DRILLS["real"].plan(1, 0.2)
    assert len(plan.quiet) == len(plan.asks)
    for ask, same in zip(plan.asks, plan.quiet, strict=True):
        assert ask.request.task_id != same.request.task_id
        assert msgspec.structs.replace(same.request, task_id=ask.request.task_id) == ask.request
        assert (ask.request.seed is not None, ask.request.determinism) == (True, Determinism.STRICT)


def test_a_real_stream_with_another_text_or_length_is_found() -> None:
    evidence = World().evidence()
    story = evidence.stories[TASK]
    story.generations, story.words = [], list(WORDS)
    assert check(evidence) == []
    story.words = [*WORDS[:-1], " other"]
    assert Kind.WRONG_TEXT in {violation.kind for violation in check(evidence)}
    story.words = [*WORDS, " more"]
    assert {violation.kind for violation in check(evidence)} == {Kind.NOT_RUN}
