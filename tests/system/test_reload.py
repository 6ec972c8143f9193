"""A pool gets another model, keeps the one it has, and rests, while clients name it and read whole answers.

The clients name the pool, as clients do who do not care which model it has at the moment. None of them tries anything
again: a refusal, an error or a short answer fails the test.
"""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
import pytest

from llorch_shared.wire.desired import PoolReload, ReloadState
from llorch_shared.wire.registry import PoolHealth
from support.system import System, mock_pool

CLIENTS, TOKENS = 4, 10
POOL: Final = mock_pool(replicas=1, slots=4, rate=100)

pytestmark = [pytest.mark.system, pytest.mark.nats, pytest.mark.timeout(180)]


class Load:
    """Clients that ask the pool one question after the other."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self._http = http
        self._url = url
        self.answered = 0
        self._progress = asyncio.Condition()

    async def client(self) -> None:
        """Until cancelled."""
        body = {"model": POOL.id, "prompt": "Say something.", "max_tokens": TOKENS}
        while True:
            async with self._http.post(f"{self._url}/v1/completions", json=body) as answer:
                said = await answer.json()
                assert answer.status == 200, said
                assert said["usage"]["completion_tokens"] == TOKENS, said
            async with self._progress:
                self.answered += 1
                self._progress.notify_all()

    async def more(self, answers: int = 2 * CLIENTS) -> None:
        wanted = self.answered + answers
        async with self._progress:
            await self._progress.wait_for(lambda: self.answered >= wanted)


async def reload(system: System, http: aiohttp.ClientSession, model: str) -> PoolHealth:
    """Ask for the model, and wait until it is decided."""
    body = {"new_model_ref": model}
    async with http.post(f"{system.url()}/v1/pools/{POOL.id}/reload", json=body) as answer:
        asked = msgspec.json.decode(await answer.read(), type=PoolReload)
        assert answer.status == 202
    seen: list[PoolHealth] = []

    async def decided() -> bool:
        health = await system.health(POOL.id)
        if health is None or health.reload is None or health.reload.id != asked.id:
            return False
        seen[:] = [health]
        return health.reload.state is not ReloadState.UNDERWAY

    await system.until(decided, f"the end of the reload to {model}", 60)
    return seen[0]


async def send(http: aiohttp.ClientSession, method: str, url: str, body: Any = None) -> int:
    async with http.request(method, url, json=body) as answer:
        await answer.read()
        return answer.status


async def test_a_pool_is_reloaded_keeps_its_model_and_rests_without_an_error(tmp_path: Path) -> None:
    async with System(tmp_path, pools=[POOL], nodes=2) as system, aiohttp.ClientSession() as http:
        pool = f"{system.url()}/v1/pools/{POOL.id}"
        load = Load(http, system.url())
        async with asyncio.timeout(150), asyncio.TaskGroup() as group:
            clients = [group.create_task(load.client()) for _ in range(CLIENTS)]
            await load.more()

            done = await reload(system, http, "mock:other")
            assert done.reload is not None
            assert (done.reload.state, done.last_error) == (ReloadState.DONE, None)
            await load.more()

            async def all_new() -> bool:
                health = await system.health(POOL.id)
                return health is not None and Counter(
                    replica.model_ref for replica in health.replicas if replica.state == "ready"
                ) == {"mock:other": 2}

            await system.until(all_new, "two replicas with the new model", 30)

            kept = await reload(system, http, "mock:missing")
            assert kept.reload is not None
            assert (kept.reload.state, kept.ready) == (ReloadState.FAILED, True)
            assert "mock:missing cannot be loaded" in (kept.last_error or "")
            await load.more()
            for client in clients:
                client.cancel()

        assert await send(http, "POST", f"{pool}/drain", {"deadline_ms": 10_000}) == 202

        async def rests() -> bool:
            health = await system.health(POOL.id)
            return health is not None and health.draining and not health.replicas

        await system.until(rests, "the drained pool to have no replica", 30)
        body = {"model": POOL.id, "prompt": "Say something.", "max_tokens": TOKENS}
        assert await send(http, "POST", f"{system.url()}/v1/completions", body) == 503
        assert await send(http, "DELETE", f"{pool}/drain") == 204
        await system.replicas_ready(POOL.id, 2)
        assert await send(http, "POST", f"{system.url()}/v1/completions", body) == 200
