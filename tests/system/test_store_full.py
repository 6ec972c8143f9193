"""The bus may store no more (max_file_store is reached), or cannot (its disk is full): refusals are clean, and when
there is room again everything comes back by itself.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from llorch_shared.bus.port import Full
from llorch_shared.bus.topology import Stream, Topology
from support.client import Refusal, Transcript, task_request
from support.small_disk import fill, mount, unmount
from support.system import System, mock_pool

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

STORE_BYTES = 24 * 1024 * 1024
BALLAST = Stream(name="BALLAST", config={"name": "BALLAST", "subjects": ["ballast"], "storage": "file"})


async def test_a_full_disk_and_a_full_store_refuse_and_recover_by_themselves(
    small_disk: Path | None, tmp_path: Path
) -> None:
    stays = {"gateway": {"cancel_on_disconnect": False}}
    async with System(tmp_path, pools=[mock_pool(replicas=1, rate=40)], settings=stays, supervised_bus=True) as system:
        if small_disk is not None:
            await fill_the_disk_and_free_it(system, small_disk / "ballast")
        await smaller_store(system)
        await fill_the_store_and_purge_it(system)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path | None]:
    """Under the store of the server; none where this process may not mount one."""
    store = tmp_path / "nats" / "jetstream"
    mounted = mount(store, mib=128)
    yield store if mounted else None
    if mounted:
        unmount(store)


async def fill_the_disk_and_free_it(system: System, ballast: Path) -> None:
    server = system.nats.pid
    running = await system.client().submit(max_tokens=2000)
    begun = await system.client().read(running.task_id, tokens_max=3)
    await asyncio.to_thread(fill, ballast)
    refusing = asyncio.create_task(refused(system))
    await system.until(lambda: is_fenced(system, 1), "the node to lose its keys, which cannot be renewed", 40)
    is_clean(await refusing)

    ballast.unlink()
    await goes_on(system, running.task_id, begun)
    assert system.nats.pid != server, "its supervisor started it again"


async def fill_the_store_and_purge_it(system: System) -> None:
    server = system.nats.pid
    running = await system.client().submit(max_tokens=2000)
    begun = await system.client().read(running.task_id, tokens_max=3)
    filling = asyncio.create_task(keep_full(system))
    is_clean(await refused(system))
    await system.until(lambda: is_fenced(system, 1), "the node to lose its keys, which cannot be renewed", 40)
    filling.cancel()
    await asyncio.gather(filling, return_exceptions=True)

    await system.bus.request("$JS.API.STREAM.PURGE.BALLAST", b"")
    await goes_on(system, running.task_id, begun)
    assert system.nats.pid == server, "nobody restarted the server"


def is_clean(refusal: Refusal) -> None:
    assert refusal.status in (429, 503)
    assert refusal.body.retriable
    assert int(refusal.headers["retry-after"]) >= 1


async def goes_on(system: System, running: str, begun: Transcript) -> None:
    await system.until(lambda: is_fenced(system, 0), "the node to have its keys again", 60)
    extra = task_request(max_tokens=5)
    await system.until(lambda: accepted(system, extra.task_id), "tasks to be accepted again", 60)
    (await system.client().read(extra.task_id)).check()
    resumed = await system.client().read(running, into=begun, tokens_max=150)
    resumed.check()
    assert resumed.error is None
    await system.client().cancel(running)


async def smaller_store(system: System) -> None:
    """Streams reserve more than a test can fill; they keep what they have when the server is given less."""
    await system.bus.ensure(Topology(streams=(BALLAST,)))
    await asyncio.to_thread(system.nats.stop)
    system.nats.config = msgspec.structs.replace(system.nats.config, file_bytes=STORE_BYTES)
    await system.restart("nats")
    await system.ready("gateway-1")
    await system.replicas_ready("mock", 1)


async def keep_full(system: System) -> None:
    """Until cancelled: keys that expire free a little every now and then."""
    while True:
        for size in (200_000, 2_000, 10):
            with contextlib.suppress(Full):
                while True:
                    await system.bus.store("ballast", b"x" * size)
        await asyncio.sleep(0.01)


async def refused(system: System) -> Refusal:
    for _ in range(10_000):
        try:
            await system.client().submit(max_tokens=2)
        except Refusal as refusal:
            return refusal
    raise AssertionError("a full store refuses nobody")


async def is_fenced(system: System, value: int) -> bool:
    return await system.metric("poold-1", "node_fenced") == value


async def accepted(system: System, task_id: str) -> bool:
    try:
        await system.client().submit(task_request(task_id=task_id, max_tokens=5))
    except Refusal as refusal:
        if refusal.status not in (429, 503):
            raise
        return False
    return True
