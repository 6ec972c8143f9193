"""When the token log may lack what was published."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from llorch_poold import token_log
from llorch_poold.token_log import TokenLog
from llorch_shared import subjects
from llorch_shared.bus.port import Message, StreamState, Unanswered
from llorch_shared.token_mark import NOT_KNOWN


class Logs:
    """Says what the test says."""

    def __init__(self) -> None:
        self.leader: str | None = "nats-1"
        self.since = 1
        self.stored = 3
        self.deaf_to = 0
        """So many of the next messages are not stored."""
        self.news: list[Callable[[], None]] = []

    def on_cluster_change(self, callback: Callable[[], None]) -> None:
        self.news.append(callback)

    async def stream_state(self, _: str) -> StreamState:
        if self.leader is None:
            raise Unanswered("nobody leads")
        life = f"made@{self.leader}@{self.since}" if self.leader else "made"
        return StreamState(3, 1, self.stored, life, self.leader)

    def publish(self, subject: str, data: bytes) -> None:
        assert subject == subjects.token_probe("node-1")
        self.stored += self.deaf_to <= 0
        self.deaf_to -= 1

    async def last(self, _: str, subject: str) -> Message | None:
        return Message(subject=subject, data=b"", seq=self.stored)


def log_of(logs: Any) -> TokenLog:
    return TokenLog(logs, "node-1")


async def test_another_leader_may_lack_what_was_published_before_it_led() -> None:
    logs = Logs()
    log = log_of(logs)
    assert not await log.look()
    assert not await log.look()
    logs.leader = "nats-2"
    assert await log.look()
    assert not await log.look()


async def test_so_may_the_same_one_that_was_elected_again_between_two_looks() -> None:
    logs = Logs()
    log = log_of(logs)
    await log.look()
    logs.since = 2
    assert await log.look()
    assert not await log.look()


async def test_so_may_the_same_one_after_a_time_without_an_answer() -> None:
    logs = Logs()
    log = log_of(logs)
    await log.look()
    logs.leader = None
    assert not await log.look()
    assert not log.sure
    logs.leader = "nats-1"
    assert await log.look()
    assert log.sure
    assert await log.stores()
    assert log.mark == "made@nats-1@1#3"


async def test_a_stream_that_begins_while_the_log_may_not_store_it_has_no_mark() -> None:
    logs = Logs()
    log = log_of(logs)
    await log.look()
    assert log.mark == "made@nats-1@1#3"
    logs.news[0]()
    assert log.mark == NOT_KNOWN
    assert await log.look()
    assert log.mark == NOT_KNOWN, "it is not known yet whether the log stores anything"
    logs.deaf_to = 100
    assert not await log.stores()
    log.doubt()
    assert log.mark == NOT_KNOWN
    logs.deaf_to = 0
    assert await log.look()
    assert await log.stores()
    assert log.mark == "made@nats-1@1#3"


async def test_the_mark_of_one_server_stands_whatever_is_heard() -> None:
    logs = Logs()
    logs.leader = ""
    log = log_of(logs)
    await log.look()
    logs.news[0]()
    assert log.mark == "made#3"


async def test_a_log_that_may_lack_something_is_looked_at_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_log, "LOOK_EVERY_S", 600.0)
    monkeypatch.setattr(token_log, "LOOK_AGAIN_S", 0.0)
    log = log_of(Logs())
    waiting = asyncio.create_task(log.until_due())
    await asyncio.sleep(0)
    log.doubt()
    await asyncio.wait_for(waiting, 15)
    await asyncio.wait_for(log.until_due(), 15)


async def test_so_may_the_same_one_after_an_answer_that_names_nobody() -> None:
    logs = Logs()
    log = log_of(logs)
    await log.look()
    logs.leader = ""
    assert not await log.look()
    assert not log.sure
    logs.leader = "nats-1"
    assert await log.look()
    assert not await log.look()


async def test_what_passed_between_servers_that_lost_each_other_may_be_missing() -> None:
    logs = Logs()
    log = log_of(logs)
    await log.look()
    logs.news[0]()
    assert not log.sure
    assert await log.look()
    assert not await log.look()


async def test_one_server_that_does_not_answer_has_lost_nothing_while_it_is_connected() -> None:
    logs = Logs()
    logs.leader = ""
    log = log_of(logs)
    await log.look()
    logs.leader = None
    await log.look()
    logs.leader = ""
    assert not await log.look()
    logs.news[0]()
    assert not await log.look()
    assert await log.stores()
    assert logs.stored == 3, "one server is not probed"


async def test_a_log_stores_again_when_it_has_a_probe_of_now() -> None:
    logs = Logs()
    log = log_of(logs)
    await log.look()
    logs.deaf_to = 2
    assert await log.stores()
    assert logs.stored == 4
    await log.look()
    logs.deaf_to = 100
    assert not await log.stores()
