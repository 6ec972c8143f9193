"""Operations on pools, and what the system can serve."""

from llorch_gateway.core.capability import capabilities, pool_health, without_tasks
from llorch_gateway.operations import Answer, Ask, Handlers
from llorch_gateway.snapshot import Snapshot
from llorch_shared.errors import not_found


def handlers(snapshot: Snapshot) -> Handlers:
    async def get_capabilities(_ask: Ask) -> Answer:
        return Answer(capabilities(snapshot.pools, snapshot.replicas, snapshot.loads))

    async def get_health(ask: Ask) -> Answer:
        """Without the ids of tasks for a caller that is bound to its tenant: most are others'."""
        pool = ask.given["id"]
        if pool not in snapshot.pools:
            raise not_found(f"pool {pool}")
        told = pool_health(snapshot.replicas.get(pool, ()), snapshot.loads.get(pool))
        return Answer(without_tasks(told) if ask.call.bound else told)

    return {"getCapabilities": get_capabilities, "getPoolHealth": get_health}
