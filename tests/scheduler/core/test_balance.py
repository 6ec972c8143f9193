"""Who takes and gives back which shards, when processes come, go, and are slow."""

from llorch_scheduler.core.balance import PATIENCE_MS, STEADY_MS, Balance, Facts, Plan


class Processes:
    """Schedulers that see the same facts and do at once what they plan."""

    def __init__(self, *names: str, wanted: int = 8) -> None:
        self.at_ms = 0
        self.wanted = frozenset(range(wanted))
        self.minds = {name: Balance(name) for name in names}
        self.unable: set[str] = set()
        self.holders: dict[int, str] = {}
        self.moves = 0

    def held(self, name: str) -> set[int]:
        return {shard for shard, holder in self.holders.items() if holder == name}

    def plan(self, name: str) -> Plan:
        facts = Facts(
            living=frozenset(self.minds),
            wanted=self.wanted,
            holders=dict(self.holders),
            mine=frozenset(self.held(name)),
        )
        return self.minds[name].plan(facts, self.at_ms)

    def turn(self) -> None:
        for name in self.minds:
            plan = self.plan(name)
            for shard in plan.take if name not in self.unable else ():
                assert shard not in self.holders
                self.holders[shard] = name
                self.moves += 1
            if plan.give is not None:
                assert self.holders.pop(plan.give) == name

    def run(self, ms: int) -> None:
        for _ in range(ms // 100):
            self.turn()
            self.at_ms += 100

    def kill(self, name: str) -> set[int]:
        moved = self.held(name)
        del self.minds[name]
        for shard in moved:
            del self.holders[shard]
        return moved


def test_one_process_takes_every_shard_that_has_pools_and_no_other() -> None:
    alone = Processes("a", wanted=3)
    alone.turn()
    assert alone.held("a") == {0, 1, 2}
    alone.wanted |= {7}
    alone.turn()
    assert alone.held("a") == {0, 1, 2, 7}


def test_those_who_start_together_begin_at_different_shards() -> None:
    three = Processes("a", "b", "c")
    plans = [three.plan(name).take for name in three.minds]
    assert sorted(len(plan) for plan in plans) == [3, 3, 3]
    assert {shard for plan in plans for shard in plan} == set(range(8))


def test_a_newcomer_gets_its_part_one_at_a_time_and_then_nothing_moves() -> None:
    both = Processes("a")
    both.run(3_000)
    both.minds["b"] = Balance("b")
    both.run(STEADY_MS - 100)
    assert both.held("b") == set(), "given before the facts were steady"
    both.run(10 * STEADY_MS)
    assert (len(both.held("a")), len(both.held("b"))) == (4, 4)
    moves = both.moves
    both.run(60_000)
    assert both.moves == moves


def test_a_killed_processs_shards_move_and_only_those() -> None:
    three = Processes("a", "b", "c")
    three.run(20_000)
    before = dict(three.holders)
    moved = three.kill("b")
    three.run(500)
    assert len(three.holders) == 8
    assert {shard for shard, holder in three.holders.items() if before[shard] != holder} == moved


def test_nobody_gives_back_while_processes_come_and_go() -> None:
    world = Processes("a")
    world.run(3_000)
    for _ in range(20):
        world.minds["b"] = Balance("b")
        world.run(STEADY_MS // 2)
        world.kill("b")
        world.run(STEADY_MS // 2)
    assert world.moves == 8


def test_a_shard_that_nobody_takes_goes_to_anybody_after_a_while() -> None:
    """The other process is counted and takes nothing: a presence that outlived its process."""
    world = Processes("a", "b")
    world.unable = {"b"}
    world.run(PATIENCE_MS - 500)
    assert len(world.held("a")) == 4
    world.run(1_000)
    assert len(world.held("a")) == 8


def test_giving_to_one_that_does_not_take_is_tried_ever_more_seldom() -> None:
    world = Processes("a", "b")
    world.unable = {"b"}
    world.run(10_000)
    moves = world.moves
    world.run(300_000)
    assert world.moves - moves < 15
    assert sum(len(world.held(name)) for name in world.minds) >= 7
    world.unable.clear()
    world.run(400_000)
    assert (len(world.held("a")), len(world.held("b"))) == (4, 4)


def test_more_processes_than_shards_leave_some_as_standby() -> None:
    world = Processes("a", "b", "c", "d", wanted=2)
    world.run(20_000)
    assert sorted(len(world.held(name)) for name in world.minds) == [0, 0, 1, 1]
