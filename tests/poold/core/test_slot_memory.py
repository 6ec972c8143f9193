"""Which slot holds whose text, and when it must go."""

import msgspec
import pytest

from llorch_poold.core.session_end import CLOCKS_MS, has_ended
from llorch_poold.core.slot_memory import HELD_MAX, Session, SlotMemory, Use
from llorch_shared.session_account import closed, opened
from llorch_shared.wire.session import SessionPolicy, SessionRecord, SessionRequest

ANN, BOB, EVE = Session("blue", "ann"), Session("blue", "bob"), Session("red", "ann")


def served(memory: SlotMemory, slot: int, session: Session, at_ms: int, *, generated: bool = True) -> None:
    memory.entered(slot, session, at_ms)
    memory.left(slot, session, at_ms, generated=generated)


def test_a_session_comes_back_to_the_slot_that_has_its_text() -> None:
    memory = SlotMemory(3)
    assert memory.pick(ANN, ()) == 0
    served(memory, 0, ANN, 10)
    served(memory, 1, BOB, 20)
    assert memory.pick(BOB, ()) == 1
    assert memory.pick(EVE, ()) == 2, "an empty slot before one that is warm for somebody"
    served(memory, 2, EVE, 30)
    assert memory.pick(Session("red", "new"), ()) == 0, "the text that was used longest ago"
    assert memory.pick(ANN, {0}) == 1
    with pytest.raises(ValueError, match="empty"):
        memory.pick(ANN, {0, 1, 2})


def test_a_prompt_that_was_read_leaves_nothing_of_others() -> None:
    memory = SlotMemory(1)
    served(memory, 0, ANN, 10)
    served(memory, 0, BOB, 20, generated=False)
    assert set(memory.sessions()) == {ANN, BOB}, "a prompt that was not read through may have left both"
    memory.end("ann", "blue")
    assert memory.due() == [0]
    served(memory, 0, BOB, 30)
    assert memory.due() == []
    assert memory.sessions() == {BOB: Use(20, 30)}


def test_a_deletion_while_the_sessions_task_runs_counts_when_it_has_left() -> None:
    memory = SlotMemory(1)
    memory.entered(0, ANN, 10)
    memory.end("ann", "blue")
    memory.left(0, ANN, 20, generated=True)
    assert memory.due() == [0]
    memory.erased(0)
    assert (memory.due(), memory.sessions()) == ([], {})


def test_a_deletion_is_of_one_tenants_session_or_of_all_of_its_id() -> None:
    memory = SlotMemory(2)
    served(memory, 0, ANN, 10)
    served(memory, 1, EVE, 10)
    memory.end("ann", "red")
    assert memory.due() == [1]
    memory.end("ann")
    assert memory.due() == [0, 1]


def test_a_task_of_a_deleted_session_does_not_save_its_text() -> None:
    memory = SlotMemory(1)
    served(memory, 0, ANN, 10)
    memory.end("ann", "blue")
    served(memory, 0, ANN, 20, generated=False)
    assert memory.is_due(0)


def test_a_slot_that_many_may_have_written_to_is_erased() -> None:
    memory = SlotMemory(1)
    for number in range(HELD_MAX):
        served(memory, 0, Session("blue", str(number)), number, generated=False)
    assert not memory.due()
    served(memory, 0, ANN, 50, generated=False)
    assert memory.due() == [0]
    assert list(memory.sessions()) == [ANN]


def test_what_is_left_of_an_earlier_life_of_the_engine_changes_nothing() -> None:
    memory = SlotMemory(1)
    served(memory, 4, ANN, 10)
    memory.left(0, ANN, 20, generated=True)
    assert (memory.is_due(4), memory.sessions()) == (False, {})


def account(ttl_ms: int = 60_000) -> SessionRecord:
    return opened("ann", "blue", SessionPolicy(), SessionRequest(ttl_ms=ttl_ms), 1_000)


def ended(now_ms: int, stored: SessionRecord | None = None, deleted_ms: int = 0) -> bool:
    use = Use(since_ms=5_000, used_ms=9_000)
    return has_ended(use, account=stored, deleted_ms=deleted_ms, policy=SessionPolicy(), ttl_ms=10_000, now_ms=now_ms)


def test_an_account_decides_when_its_session_ends() -> None:
    assert not ended(60_999, account()), "not the pool's shorter time"
    assert ended(61_000, account())
    assert ended(5_000, closed(account(), 4_000))
    busy = msgspec.structs.replace(account(), used_ms=50_000)
    assert not ended(109_999, busy)


def test_a_session_without_an_account_ends_by_its_deletion_or_the_pools_time() -> None:
    assert not ended(18_999)
    assert ended(19_000)
    assert ended(9_001, deleted_ms=8_000)
    assert ended(9_001, deleted_ms=5_000 - CLOCKS_MS), "clocks differ"
    assert not ended(9_001, deleted_ms=4_999 - CLOCKS_MS), "an earlier session of this id was deleted"
