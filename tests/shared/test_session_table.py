"""Which sessions a process looks up, and what it forgets when there are many."""

import msgspec
import pytest

from llorch_shared import session_account
from llorch_shared.bus.memory import MemoryBus
from llorch_shared.bus.memory_server import MemoryServer
from llorch_shared.errors import PolicyLabel, Refused
from llorch_shared.session_account import Wish
from llorch_shared.session_store import Known
from llorch_shared.session_table import EXPIRED_AFTER_MS, SWEEP_EVERY_MS, SessionTable
from llorch_shared.wire.session import SessionPolicy, SessionRequest, SessionsSpec

FREE = SessionPolicy()


def known(number: int, *, tenant: str = "a", busy: bool = False) -> Known:
    record = session_account.opened(f"s{number}", tenant, FREE, SessionRequest(), 0)
    if busy:
        record = session_account.reserve(record, Wish("t", "p1", 1, 1, "mock", "gw-1"), FREE, 1)
    return Known(record, number + 1)


def table(**policy: int) -> SessionTable:
    made = SessionTable(MemoryBus(MemoryServer()), sessions_max=3)
    made.policy_changed(msgspec.json.encode(SessionsSpec(tenants={"b": SessionPolicy(**policy)})))
    return made


async def test_only_sessions_with_an_account_concern_anybody() -> None:
    made = table(tokens_budget=5)
    made.saw(known(0))
    assert made.concerns("a", "s0")
    assert not made.concerns("a", "s1")
    assert made.concerns("b", "s1"), "its policy keeps the account of each"


async def test_an_older_version_changes_nothing() -> None:
    made = table()
    made.saw(known(5))
    older = known(5, busy=True)
    made.saw(Known(older.record, 1))
    assert list(made.under_way()) == []


async def test_what_holds_something_is_not_forgotten_and_what_is_forgotten_is_looked_up() -> None:
    made = table(tokens_budget=5)
    made.saw(known(0, busy=True))
    for number in range(1, 4):
        made.saw(known(number, tenant="b"))
    assert made.whole, "sessions of b are looked up whether they are here or not"
    assert [each.record.session_id for each in made.under_way()] == ["s0"]
    for number in range(4, 8):
        made.saw(known(number))
    assert not made.whole
    assert made.concerns("a", "never seen")
    assert made.get("a", "s0") is not None


async def test_a_tenant_has_room_for_so_many_accounts_until_the_first_are_gone_from_the_bucket() -> None:
    made = table(accounts_max=2)
    for number in range(2):
        made.check_room("b", 0)
        made.saw(known(number, tenant="b"))
        made.saw(Known(known(number, tenant="b").record, number + 10))
    for now_ms in (1, FREE.ttl_ms):
        with pytest.raises(Refused) as refused:
            made.check_room("b", now_ms)
        assert (refused.value.status, refused.value.body.policy_label) == (429, PolicyLabel.SESSION_ACCOUNTS)
    made.check_room("a", 1)
    made.check_room("b", FREE.ttl_ms + EXPIRED_AFTER_MS + SWEEP_EVERY_MS)
    assert made.get("b", "s0") is None


async def test_a_policy_that_asks_for_less_makes_what_was_forgotten_count() -> None:
    made = table(tokens_budget=5)
    for number in range(5):
        made.saw(known(number, tenant="b"))
    assert made.whole
    made.policy_changed(None)
    assert not made.whole
