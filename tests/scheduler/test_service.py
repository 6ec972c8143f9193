"""The scheduler on the in-memory bus."""

from scheduler.world import Client, Node, pool_spec, request, scheduler, until
from llorch_shared.bus.memory import MemoryBus, MemoryServer


async def test_an_admitted_task_is_placed_claimed_and_its_place_is_given_back() -> None:
    server = MemoryServer()
    client, node = Client(MemoryBus(server)), Node(MemoryBus(server))
    async with scheduler(MemoryBus(server)):
        await client.start()
        await client.want(pool_spec())
        task = request()
        await client.admit(task)
        await node.start()
        await until(lambda: task.task_id in node.claims, "the claim")
        await node.end(task.task_id)
        await until(lambda: bool(client.loads), "a load report")
        assert (await client.bus.stream_state("ADM_p1_interactive")).messages == 0
    await node.stop()
