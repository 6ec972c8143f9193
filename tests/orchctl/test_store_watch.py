"""When a nats-server that could not write is started again."""

import itertools

import pytest

from llorch_ctl.core.store_watch import MIB, StoreFailure, StoreWatch, WatchPolicy, read_failure

POLICY = WatchPolicy(room_bytes=64 * MIB, stands_s=2, pause_first_s=5, pause_max_s=30, calm_s=100)
ROOM, NONE = 64 * MIB, 64 * MIB - 1
SAID = b"[7] 2026/11/21 23:32:22.913415 "
FAILED = SAID + b"[ERR] JetStream stream '$G > RUN' critical write error: write /s/1.blk: no space"


def failed(watch: StoreWatch) -> StoreWatch:
    watch.begun()
    assert watch.heard(FAILED) is not None
    return watch


@pytest.mark.parametrize(
    ("line", "part", "reason"),
    [
        (b"[ERR] JetStream stream '$G > RUN' critical write error: write /s/1.blk: no space", "RUN", "no space"),
        (b"[ERR] Filestore [KV_REG] Critical write error: write /s/1.blk: no space left", "KV_REG", "no space left"),
        (b"[ERR] JetStream consumer '$G > ADM_a > sched' critical write error: disk quota", "sched", "disk quota"),
        (b"[ERR] JetStream cluster meta group critical write error: a disk error", "JetStream", "a disk error"),
        (b"[ERR] RAFT [yrzKKRBu - S-R3F-a] Critical write error: no space", "yrzKKRBu - S-R3F-a", "no space"),
        (b"[ERR] JetStream out of File resources, will be DISABLED", "JetStream", "out of resources"),
        (
            b"[WRN] Filesystem permission denied while writing msg, disabling JetStream: open /s: permission denied",
            "JetStream",
            "permission denied",
        ),
    ],
)
def test_what_the_server_says_of_a_write_that_failed(line: bytes, part: str, reason: str) -> None:
    assert read_failure(SAID + line) == StoreFailure(part=part, reason=reason)


@pytest.mark.parametrize(
    "line",
    [
        b"[INF] Server is ready",
        b"[ERR] JetStream failed to store a msg on stream '$G > RUN': maximum bytes exceeded",
        b"[ERR] 127.0.0.1:9 - cid:5 - \"JetStream stream '$G > RUN' critical write error: x\" - authentication error",
        b"",
    ],
)
def test_other_lines_and_names_that_clients_chose_are_no_failure(line: bytes) -> None:
    assert read_failure(SAID + line) is None


def test_a_server_that_stores_is_left_alone_however_full_the_disk() -> None:
    watch = StoreWatch(POLICY)
    watch.begun()
    assert not any(watch.look(free, now) for free in (0, ROOM) for now in range(100))


def test_it_is_started_again_once_when_there_has_been_room_for_a_moment() -> None:
    watch = failed(StoreWatch(POLICY))
    assert [watch.look(NONE, 10), watch.look(ROOM, 11), watch.look(ROOM, 12.9)] == [False, False, False]
    assert [watch.look(NONE, 12.95), watch.look(ROOM, 13), watch.look(ROOM, 14.9)] == [False, False, False]
    assert watch.look(ROOM, 15)
    watch.begun()
    assert not watch.look(ROOM, 100)
    assert watch.restarts == 1


def test_only_the_first_failure_of_a_life_is_told() -> None:
    watch = failed(StoreWatch(POLICY))
    assert watch.heard(FAILED) is None
    watch.begun()
    assert watch.heard(FAILED) is not None


def restarts_when_writes_fail_at_once(free_at_failure: int, count: int) -> list[float]:
    """At which times, when each life's first write fails and there is room a second later."""
    watch, now, times = failed(StoreWatch(POLICY)), 0.0, list[float]()
    watch.look(free_at_failure, now)
    while len(times) < count:
        now += 0.5
        if watch.look(ROOM, now):
            times.append(now)
            failed(watch)
            watch.look(free_at_failure, now)
    return times


def gaps(times: list[float]) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise(times)]


def test_a_disk_that_is_full_again_and_again_costs_the_first_pause_each_time() -> None:
    assert gaps(restarts_when_writes_fail_at_once(NONE, 5)) == [5, 5, 5, 5]


def test_writes_that_fail_although_there_is_room_make_restarts_ever_rarer() -> None:
    assert gaps(restarts_when_writes_fail_at_once(ROOM, 6)) == [10, 20, 30, 30, 30]


def test_a_long_life_forgives() -> None:
    watch = failed(StoreWatch(POLICY))
    now = 0.0
    for _ in range(3):
        while not watch.look(ROOM, now):
            now += 1
        failed(watch)
    assert watch.wait_s(now) == POLICY.pause_first_s * 4
    now += POLICY.calm_s
    watch.look(ROOM, now)
    assert watch.wait_s(now) == 0
    assert watch.look(ROOM, now + POLICY.stands_s)
    assert watch.wait_s(now + POLICY.stands_s) == POLICY.pause_first_s
