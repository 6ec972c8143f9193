"""Equal events give equal effects, to the byte: in this process, in another one, and after a takeover."""

import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from llorch_scheduler.core.effects import Effect, Place
from llorch_scheduler.core.events import Event
from llorch_scheduler.core.job import Phase
from llorch_scheduler.core.limits import Limits
from llorch_scheduler.core.scheduler import SchedulerCore
from llorch_shared.wire.policy import QueueSpec
from llorch_shared.wire.task import Priority
from scheduler.core.test_random_walk import Walk
from scheduler.core_world import World, task_id

STEPS = 1_000


class Recorder(World):
    """A world that remembers what its core was told, and what that answered."""

    events: list[Event]
    answers: list[bytes]

    def tell(self, event: Event) -> list[Effect]:
        if not hasattr(self, "events"):
            self.events, self.answers = [], []
        self.events.append(event)
        effects = super().tell(event)
        self.answers.append(encoded(effects))
        return effects


def encoded(effects: list[Effect]) -> bytes:
    return b"\n".join(type(effect).__name__.encode() + msgspec.json.encode(effect) for effect in effects)


def recording(seed: int) -> tuple[list[Event], list[bytes]]:
    """A walk without a takeover, as one core saw it."""
    walk = Walk(random.Random(seed), world=Recorder)
    for _ in range(STEPS):
        walk.dice.choice(walk.steps)()
    assert isinstance(walk.world, Recorder)
    return walk.world.events, walk.world.answers


def digest(seed: int) -> str:
    return hashlib.sha256(b"\n".join(recording(seed)[1])).hexdigest()


@pytest.mark.parametrize("seed", [1, 2])
def test_the_same_event_log_gives_the_same_bytes(seed: int) -> None:
    events, answers = recording(seed)
    core = SchedulerCore(limits=Limits(attempts_max=4, preempt_lead_ms=3_500))
    assert [encoded(core.handle(event)) for event in events] == answers
    assert sum(b"Place{" in answer for answer in answers) > 15


@pytest.mark.parametrize("hash_seed", ["0", "4711"])
def test_another_process_with_other_hashes_gives_the_same_bytes(hash_seed: str) -> None:
    tests = Path(__file__).parents[2]
    code = "from scheduler.core.test_determinism import digest; print(digest(3))"
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join([str(tests), *sys.path])}
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True, timeout=60
    )
    assert other.stdout.strip() == digest(3)


def backlog(world: World) -> None:
    for number in range(1, 41):
        world.now += 7
        world.admit(
            number,
            priority=Priority.BATCH if number % 3 == 0 else Priority.INTERACTIVE,
            tenant=f"t{number % 4}",
            deadline_ms=600_000 - 9_000 * (number % 7),
        )


def order_of(world: World) -> dict[tuple[Priority, str], list[str]]:
    """Who follows whom in each flow, as they would be placed."""
    flows: dict[tuple[Priority, str], list[str]] = {}
    waiting = {job.task_id for job in world.core.jobs.values() if job.phase is Phase.QUEUED}
    for effect in world.replica("big", slots=100):
        if isinstance(effect, Place) and effect.record.task_id in waiting:
            flows.setdefault((effect.record.priority, effect.record.tenant), []).append(effect.record.task_id)
    return flows


def test_after_a_takeover_what_waits_has_the_same_order_in_each_flow() -> None:
    before, after = World(), World()
    for world in (before, after):
        world.respec(queue=QueueSpec(capacity=1_000))
        backlog(world)
    after.admissions = dict(random.Random(5).sample(list(after.admissions.items()), len(after.admissions)))
    after.take_over()
    expected = order_of(before)
    assert sum(map(len, expected.values())) == 40
    assert order_of(after) == expected


def test_a_task_that_came_back_is_still_first_of_its_flow_after_a_takeover() -> None:
    world = World()
    world.replica("r1")
    backlog(world)
    world.settle()
    world.claim()
    world.settle()
    first = next(job for job in world.core.jobs.values() if job.phase is Phase.RUNNING)
    world.lose("r1")
    world.settle()
    world.take_over()
    flow = order_of(world)[first.record.priority, first.record.tenant]
    assert flow[0] == first.task_id


def test_two_takeovers_of_the_same_truth_decide_the_same() -> None:
    world = World()
    world.replica("r1", slots=2)
    backlog(world)
    for _ in range(5):
        world.settle()
        world.claim()
    runs = dict(world.runs)
    world.take_over()
    first = [encoded([effect]) for effect in world.pending]
    world.pending.clear()
    assert world.runs == runs
    world.take_over()
    world.zombies.clear()
    assert [encoded([effect]) for effect in world.pending] == first
    assert world.state(int(task_id(1)[-12:])) in ("running", "placed", "queued")
