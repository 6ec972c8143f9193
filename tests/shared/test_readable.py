"""What anybody may have written into a bucket ends no reader."""

import msgspec
import pytest

from llorch_shared.bus.memory import MemoryBus
from llorch_shared.bus.memory_server import MemoryServer
from llorch_shared.readable import readable
from llorch_shared.session_table import SessionTable
from llorch_shared.wire.desired import TENANT_DECODER
from llorch_shared.wire.session import SessionPolicy, SessionsSpec

GARBAGE = [b"", b"{", b"[]", b'{"id":7}', b'{"id":"\xff"}', b'{"\xff":1}', b'{"x":' + b"[" * 50_000]


@pytest.mark.parametrize("data", GARBAGE, ids=range(len(GARBAGE)))
def test_what_cannot_be_read_counts_as_absent_and_is_named(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    assert readable(TENANT_DECODER, data, "the key tenant.a") is None
    assert "the key tenant.a cannot be read" in caplog.text


@pytest.mark.parametrize("data", GARBAGE[4:], ids=range(4, len(GARBAGE)))
async def test_a_policy_that_cannot_be_read_leaves_the_last_one_in_effect(data: bytes) -> None:
    table = SessionTable(MemoryBus(MemoryServer()))
    policy = SessionPolicy(tokens_budget=5)
    table.policy_changed(msgspec.json.encode(SessionsSpec(default=policy)))
    table.policy_changed(data)
    assert table.policy("a") == policy
