"""The time in which an engine serves: placements are taken and run on its slots, its gauges are read, and it is not
read from while the token log is behind. Until it breaks.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

from llorch_poold.adapters.port import EngineBroke
from llorch_poold.engine_life import EngineLife
from llorch_poold.intake import Intake
from llorch_poold.node_context import NodeContext, ReplicaFacts
from llorch_poold.slots import Slots
from llorch_shared.wire.registry import Gpu

log = logging.getLogger(__name__)

SCRAPE_EVERY_S: Final = 5.0


async def serve(
    node: NodeContext, life: EngineLife, facts: ReplicaFacts, slots: Slots, *, gpus: Callable[[], Sequence[Gpu]]
) -> str:
    """Returns why it is over. `gpus`: those of the device mask. Cancelled, it leaves what runs to the slots."""
    slots.open(life, facts)
    node.outlet.add_reader(life.adapter.pause)
    intake = Intake(node.bus, facts.pool_id, facts.replica_id, slots, metrics=node.metrics)
    try:
        reason = await life.broken_before(intake.run(), _scrape_now_and_then(life, facts, gpus))
    finally:
        node.outlet.remove_reader(life.adapter.pause)
        life.adapter.pause(False)
        slots.close()
    return reason or "the replica stopped serving"


async def _scrape_now_and_then(life: EngineLife, facts: ReplicaFacts, gpus: Callable[[], Sequence[Gpu]]) -> None:
    while True:
        try:
            used = await life.adapter.kv_used_ratio()
        except EngineBroke as error:
            log.debug("the KV use of %s is not known: %s", facts.replica_id, error)
        else:
            facts.metrics.kv_used.set(used)
            for gpu in gpus():
                facts.metrics.gpu(gpu)
        await asyncio.sleep(SCRAPE_EVERY_S)
