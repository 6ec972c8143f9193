"""When a node may speak: situations of renewals, pauses and lost connections, with time as an argument."""

import random
from math import inf

from llorch_poold.core.fence import FENCE_SHARE, Fence

TTL = 3.0
TRUST = FENCE_SHARE * TTL


def opened(*keys: str, at: float = 0.0) -> Fence:
    fence = Fence(TTL)
    for key in keys or ("node",):
        fence.renewed(key, at, at)
    assert fence.open(fence.epoch, at)
    return fence


def speaks(fence: Fence, now: float) -> bool:
    return now < fence.until


def test_a_new_node_is_silent_until_its_keys_are_confirmed_and_its_tasks_are_looked_at() -> None:
    fence = Fence(TTL)
    assert not speaks(fence, 0)
    assert not fence.open(fence.epoch, 0), "without a key nothing is held"
    fence.renewed("node", 0, 0.1)
    assert not speaks(fence, 0.1)
    assert fence.open(fence.epoch, 0.1)
    assert speaks(fence, 0.1)


def test_the_time_counts_from_the_start_of_a_renewal() -> None:
    fence = Fence(TTL)
    fence.renewed("node", 1.0, 2.0)
    assert fence.open(fence.epoch, 2.0)
    assert speaks(fence, 1.0 + TRUST - 0.001)
    assert not speaks(fence, 1.0 + TRUST)
    assert 1.0 + TRUST < 1.0 + TTL, "silent before the server lets the key expire"


def test_renewals_keep_it_open() -> None:
    fence = opened()
    for second in range(1, 100):
        assert speaks(fence, second)
        fence.renewed("node", second, second + 0.2)


def test_the_key_that_was_confirmed_longest_ago_decides() -> None:
    fence = opened("node", "replica")
    fence.renewed("node", 2.0, 2.0)
    assert not speaks(fence, TRUST)
    fence = opened("node", "replica")
    fence.renewed("node", 2.0, 2.0)
    fence.left("replica")
    assert speaks(fence, TRUST)


def test_a_process_that_was_stopped_says_nothing_although_its_last_renewal_is_answered_when_it_wakes() -> None:
    fence = opened()
    assert not speaks(fence, 9.0)
    fence.renewed("node", 1.0, 9.0)
    assert not speaks(fence, 9.0)
    fence.renewed("node", 9.0, 9.1)
    assert fence.holds(9.1)
    assert not speaks(fence, 9.1), "what others took over meanwhile has to be let go first"
    assert fence.open(fence.epoch, 9.2)
    assert speaks(fence, 9.2)


def test_a_lost_connection_closes_at_once_and_asks_for_every_key_again() -> None:
    fence = opened("node", "replica")
    fence.close()
    assert not speaks(fence, 0.1)
    fence.renewed("node", 0.2, 0.2)
    assert not fence.open(fence.epoch, 0.2)
    fence.renewed("replica", 0.2, 0.2)
    assert fence.open(fence.epoch, 0.2)


def test_who_read_before_the_last_gap_has_not_read_enough() -> None:
    fence = opened()
    fence.close()
    fence.renewed("node", 1.0, 1.0)
    epoch = fence.epoch
    fence.renewed("node", 5.0, 5.0)
    assert fence.holds(5.0)
    assert not fence.open(epoch, 5.0), "the process was stopped while it read"
    assert fence.open(fence.epoch, 5.0)


def test_a_lapse_is_told_once() -> None:
    fence = opened()
    assert not fence.look(1.0)
    assert fence.look(TRUST)
    assert not fence.look(TRUST + 1)


def test_its_tasks_are_its_own_until_a_key_has_expired_and_the_grace_is_over() -> None:
    fence = Fence(TTL, grace_s=10.0)
    assert fence.given_away_at == inf, "what was never told is nobody else's"
    fence.renewed("node", 0.0, 0.1)
    fence.renewed("replica", 1.0, 1.1)
    assert fence.open(fence.epoch, 1.1)
    fence.close()
    assert fence.given_away_at == TTL + 10.0, "the loss of the connection takes nothing back that was confirmed"
    fence.renewed("node", 6.0, 6.1)
    assert fence.given_away_at == 1.0 + TTL + 10.0
    fence.left("replica")
    assert fence.given_away_at == 6.0 + TTL + 10.0
    assert Fence(TTL).given_away_at == inf


def test_no_order_of_events_lets_a_node_speak_whose_keys_may_have_expired() -> None:
    """The server lets a key go `TTL` after it stored it, which is not before the renewal began. At any moment a node
    that may speak has all its keys stored within the TTL, and has read who owns its tasks since a key was last gone."""
    spoke = 0
    for seed in range(300):
        pick = random.Random(seed)
        fence, now = Fence(TTL), 0.0
        keys = ["node", "replica-1", "replica-2"][: pick.randint(1, 3)]
        stored: dict[str, float] = {}
        gone_at, read, used = 0.0, (fence.epoch, 0.0), 0.0
        for _ in range(200):
            before, now = now, now + pick.choice((0.0, 0.1, 0.5, 1.0, 4.0))
            match pick.randrange(5):
                case 0 | 1:
                    key, started = pick.choice(keys), pick.uniform(before, now)
                    if started - stored.get(key, started) >= TTL:
                        gone_at = started
                    stored[key] = started
                    fence.renewed(key, started, now)
                case 2:
                    read = (fence.epoch, now)
                case 3:
                    if fence.open(read[0], now):
                        used = read[1]
                case _:
                    if pick.random() < 0.1:
                        fence.close()
            if speaks(fence, now):
                spoke += 1
                assert all(now - at < TTL for at in stored.values()), seed
                assert used >= gone_at, seed
    assert spoke > 1000
