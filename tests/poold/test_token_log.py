"""When the token log may lack what was published."""

from typing import Any

from llorch_poold.token_log import TokenLog
from llorch_shared.bus.port import StreamState, Unanswered


class Logs:
    """Says what the test says."""

    def __init__(self) -> None:
        self.leader: str | None = "nats-1"

    async def stream_state(self, _: str) -> StreamState:
        if self.leader is None:
            raise Unanswered("nobody leads")
        return StreamState(3, 1, 3, "life", self.leader)


def log_of(logs: Any) -> TokenLog:
    return TokenLog(logs)


async def test_another_leader_may_lack_what_was_published_before_it_led() -> None:
    logs = Logs()
    log = log_of(logs)
    assert not await log.look()
    assert not await log.look()
    logs.leader = "nats-2"
    assert await log.look()
    assert not await log.look()


async def test_so_may_the_same_one_after_a_time_without_an_answer() -> None:
    logs = Logs()
    log = log_of(logs)
    await log.look()
    logs.leader = None
    assert not await log.look()
    assert not log.seen
    logs.leader = "nats-1"
    assert await log.look()
    assert log.seen
    assert log.mark == "life#3"


async def test_one_server_that_does_not_answer_has_lost_nothing_while_it_is_connected() -> None:
    logs = Logs()
    logs.leader = ""
    log = log_of(logs)
    await log.look()
    logs.leader = None
    await log.look()
    logs.leader = ""
    assert not await log.look()
