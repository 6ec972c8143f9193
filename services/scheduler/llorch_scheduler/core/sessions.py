"""What the scheduler knows of sessions without an account: where their tasks ran. A memory, bounded, lost at a
takeover; it decides nothing but which of equal replicas a task goes to."""

from collections.abc import Mapping

from llorch_scheduler.core.affinity import Last
from llorch_scheduler.core.pool import Pool
from llorch_shared.wire.session import SessionQuestion, SessionSeen


def seen(pools: Mapping[str, Pool], question: SessionQuestion, at_ms: int) -> SessionSeen:
    """In whichever pool its latest task was placed. O(pools)."""
    best: tuple[Last, str, int] | None = None
    turns = 0
    tenants: dict[str, None] = {}
    for pool_id, pool in pools.items():
        if pool.spec is None:
            continue
        ttl_ms = pool.spec.affinity.ttl_ms
        for last in pool.fleet.affinity.of_any(question.session_id, at_ms=at_ms, ttl_ms=ttl_ms):
            if question.tenant and last.tenant != question.tenant:
                continue
            turns += last.turns
            tenants[last.tenant] = None
            if best is None or last.at_ms > best[0].at_ms:
                best = last, pool_id, ttl_ms
            if question.forget:
                pool.fleet.affinity.drop(last.tenant, question.session_id)
    if best is None:
        return SessionSeen(found=False)
    last, found_in, ttl_ms = best
    replica = pools[found_in].fleet.get(last.replica_id)
    return SessionSeen(
        found=True,
        turns=turns,
        left_ms=max(0, last.at_ms + ttl_ms - at_ms),
        pool_id=found_in,
        replica_id=last.replica_id,
        task_id=last.task_id,
        tenants=tuple(tenants),
        warm=last.warm and replica is not None and last.was_on(replica),
    )
