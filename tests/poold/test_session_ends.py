"""What a node's engines hold of sessions that have ended is erased: heard of or not, and never under a running task."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from llorch_poold.core import erasure
from llorch_shared import session_account, streams, subjects
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.session import SessionEnded, SessionPolicy, SessionRequest
from support.link import Link
from support.nats_server import NatsServer, free_port
from support.node_harness import DEADLINE_S, NodeHarness, Placed, mock_pool

pytestmark = pytest.mark.nats

ANN, BOB = "00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b"
PROMPT = "a secret that only this session knows"
WORDS = len(PROMPT.split())
KEPT = WORDS + 2
"""Of three tokens behind it the last is not in the cache."""
encode = msgspec.json.encode


class Away(NodeHarness):
    """A node whose bus can be cut, with a replica of two slots."""

    link: Link

    async def slots(self) -> list[dict[str, Any]]:
        async with httpx.AsyncClient() as http:
            return list((await http.get(f"http://127.0.0.1:{self.port()}/slots")).json())

    async def held(self) -> list[int]:
        """Tokens in each slot; of a busy one, of its prompt."""
        return [slot["n_prompt_tokens"] for slot in await self.slots()]

    async def until_kept(self, *tokens: int) -> None:
        found: list[int] = []
        try:
            async with asyncio.timeout(DEADLINE_S):
                while (found := await self.held()) != list(tokens):
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"the slots keep {found} tokens, not {tokens}") from None

    async def cached(self, slot: int) -> int:
        """How much of the prompt somebody else finds cached there."""
        body = {"prompt": PROMPT, "n_predict": 1, "id_slot": slot, "cache_prompt": True}
        async with httpx.AsyncClient() as http:
            answer = (await http.post(f"http://127.0.0.1:{self.port()}/completion", json=body)).raise_for_status()
        return int(answer.json()["timings"]["cache_n"])

    async def serve(self, session_id: str, **wish: Any) -> Placed:
        return await self.until_ended(await self.place(session_id=session_id, prompt=PROMPT, max_tokens=3, **wish))

    def delete(self, session_id: str, tenant: str = "default") -> None:
        self.bus.publish(subjects.SESSION_ENDED, encode(SessionEnded(session_id=session_id, tenant=tenant)))


@pytest.fixture
async def node(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Away]:
    link = Link(free_port(), nats_server.port)
    await link.start()
    pool = mock_pool(rate=100, slots=2)
    async with Away(nats_server, tmp_path, pools=[pool], node_url=link.url) as node:
        node.link = link
        await node.ready()
        yield node
    await link.close()


async def test_a_deleted_session_leaves_no_cached_prompt(node: Away) -> None:
    await node.serve(ANN)
    await node.serve(BOB)
    await node.until_kept(KEPT, KEPT)
    node.delete(ANN, tenant="another")
    node.delete(BOB)
    await node.until_kept(KEPT, 0)
    assert await node.cached(1) == 0
    assert await node.cached(0) == WORDS - 1, "the other session is as warm as before"


async def test_what_runs_goes_on_and_is_erased_behind_it(node: Away) -> None:
    await node.serve(ANN)
    node.bus.publish(subjects.SESSION_ENDED, b"not json")
    running = await node.place(session_id=ANN, prompt=PROMPT, max_tokens=2000, determinism="best_effort")
    await node.until_tokens(running, 5)
    assert (await node.slots())[0]["n_prompt_tokens_cache"] == WORDS - 1, "in the slot that has its text"
    await node.serve(BOB)
    node.delete(ANN)
    node.delete(BOB, tenant="")
    await node.until_kept(WORDS, 0)
    assert await node.busy_slots() == 1
    await node.cancel(running.task_id)
    await node.until_ended(running)
    await node.until_kept(0, 0)


async def test_a_slot_that_could_not_be_erased_warms_nobody(node: Away, caplog: pytest.LogCaptureFixture) -> None:
    await node.serve(ANN)
    await node.fault(kind="no_erase", times=1)
    node.delete(ANN)
    async with asyncio.timeout(DEADLINE_S):
        while "still holds the text" not in caplog.text:
            await asyncio.sleep(0.02)
    assert (await node.held())[0] == KEPT
    running = await node.place(session_id=ANN, prompt=PROMPT, max_tokens=2000, determinism="best_effort")
    await node.until_tokens(running, 1)
    slot = (await node.slots())[0]
    assert (slot["is_processing"], slot["n_prompt_tokens_cache"]) == (True, 0)
    await node.cancel(running.task_id)
    async with asyncio.timeout(DEADLINE_S):
        while (await node.held())[0]:
            await asyncio.sleep(0.02)


async def test_an_engine_that_erases_nothing_is_replaced_with_all_it_holds(
    node: Away, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasure, "PAUSE_FIRST_S", 0.01)
    before = await node.ready()
    await node.serve(ANN)
    await node.fault(kind="no_erase", times=0)
    node.delete(ANN)
    after = await node.ready(other_than=before.incarnation)
    assert after.restart_count == before.restart_count + 1
    assert [await node.cached(slot) for slot in (0, 1)] == [0, 0]
    assert (await node.serve(BOB)).data("end")[0]["tokens_out"] == 3
    assert node.metrics.counter("erasures_failed_total").labels("mock")._value.get() == erasure.ENOUGH


async def test_a_node_that_was_away_erases_what_ended_meanwhile(node: Away) -> None:
    await node.serve(ANN)
    await node.serve(BOB)
    await node.until_kept(KEPT, KEPT)
    node.link.cut()
    ended = SessionEnded(session_id=ANN, tenant="default", at_ms=now_ms())
    await node.bus.store(subjects.session_deleted("default", ANN), encode(ended), ttl_s=60)
    policy = SessionPolicy()
    account = session_account.opened(BOB, "default", policy, SessionRequest(), now_ms())
    await node.bus.store(subjects.session("default", BOB), encode(session_account.closed(account, now_ms())))
    node.delete(ANN)
    node.delete(BOB)
    await node.bus.flush()
    assert await node.held() == [KEPT, KEPT]
    node.link.mend()
    await node.until_kept(0, 0)
    assert await node.bus.last(streams.SES, subjects.session("default", BOB)) is not None
