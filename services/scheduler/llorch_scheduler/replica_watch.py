"""Tells the terms of this process what becomes of their replicas: reported, expired, or gone with their node.

Registry keys expire in seconds; a node whose connection to the bus is gone is known to be lost much sooner, because
it is asked (`asking`). Its replicas are then lost exactly as when their keys expire, and are back with their next
report.
"""

import logging
from collections.abc import Mapping
from typing import Final

from llorch_scheduler.asking import Asking
from llorch_scheduler.core.roll_call import RollCall
from llorch_scheduler.term_loop import TermLoop
from llorch_shared import subjects
from llorch_shared.bus.port import Bus
from llorch_shared.readable import readable
from llorch_shared.wire.registry import NODE_DECODER, REPLICA_DECODER

log = logging.getLogger(__name__)

EVERY_MS: Final = 250
"""How often a node is asked, while they are few; a lost one is found within 0.8 s."""


class ReplicaWatch:
    """`terms` are those of the process, by shard. Only nodes with a replica of their pools are asked."""

    def __init__(self, bus: Bus, terms: Mapping[int, TermLoop]) -> None:
        self._terms: Final = terms
        self._pools: Final[dict[str, dict[str, str]]] = {}
        """Node → registry key → pool, for keys that expire and nodes that are lost."""
        self._incarnations: Final[dict[str, str]] = {}
        """Node → its present life. Each is heard, and lost, for itself."""
        self.nodes: Final = RollCall(every_ms=EVERY_MS, again_ms=EVERY_MS)
        self._asking: Final = Asking(
            bus,
            self.nodes,
            expected=self._expected,
            subject_of=lambda name: subjects.node_here(name.partition("/")[0]),
            gone=self._node_gone,
        )

    async def ask_nodes(self) -> None:
        """Until cancelled."""
        await self._asking.keep()

    # what the registry tells; these run in the bus's reader

    def node_changed(self, key: str, value: bytes | None) -> None:
        node = key.partition(".")[2]
        if value is None:
            self._incarnations.pop(node, None)
            return
        record = readable(NODE_DECODER, value, f"the registry key {key}")
        if record is not None:
            self._incarnations[node] = record.incarnation

    def replica_changed(self, key: str, value: bytes | None) -> None:
        node = _node_of(key)
        if value is None:
            pools = self._pools.get(node, {})
            if (pool_id := pools.pop(key, "")) and (loop := self._loop_of(pool_id)) is not None:
                loop.watch.replica_lost(key)
            if not pools:
                self._pools.pop(node, None)
            return
        record = readable(REPLICA_DECODER, value, f"the registry key {key}")
        if record is None:
            return
        self._pools.setdefault(node, {})[key] = record.pool_id
        if (loop := self._loop_of(record.pool_id)) is not None:
            loop.watch.replica_reported(key, record)

    def _loop_of(self, pool_id: str) -> TermLoop | None:
        return self._terms.get(subjects.shard_of(pool_id))

    # nodes that are asked

    def _expected(self) -> list[str]:
        if not self._terms:
            return []
        return [
            f"{node}/{incarnation}"
            for node, incarnation in self._incarnations.items()
            if any(subjects.shard_of(pool_id) in self._terms for pool_id in set(self._pools.get(node, {}).values()))
        ]

    def _node_gone(self, name: str) -> None:
        """Told again until its keys have expired: a takeover in between has read them once more."""
        for key, pool_id in self._pools.get(name.partition("/")[0], {}).items():
            if (loop := self._loop_of(pool_id)) is not None:
                loop.watch.replica_lost(key, node_gone=True)


def _node_of(key: str) -> str:
    return key.split(".")[1]
