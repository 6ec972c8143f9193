"""Carries out what `core/reload.py` decides: reads who is alive while a reload is under way, and writes its end.

Only then: this node does not follow the registry otherwise. Every node of the system does this, and compare-and-set
lets one of them write. Whoever dies between the two writes of a change-over leaves a reload whose model the
specification has already; the next look ends it.
"""

import asyncio
import logging
from typing import Any, Final

import msgspec

from llorch_poold import desired_state
from llorch_poold.core.reconcile import with_model
from llorch_poold.core.reload import Failed, Switch, ended, verdict
from llorch_poold.node_context import NodeContext
from llorch_shared import change_note, streams, subjects
from llorch_shared.bus.port import BusError, WrongSequence
from llorch_shared.live_table import LiveTable
from llorch_shared.logs import narrate
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.audit import AuditEvent, AuditRecord
from llorch_shared.wire.desired import PoolReload, ReloadState
from llorch_shared.wire.registry import REPLICA_DECODER, ReplicaRecord
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.version import Kind, decode, spec_headers

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 0.5
"""How soon what other nodes have become is seen while a reload is under way."""


class Reloads:
    def __init__(self, context: NodeContext, specs: LiveTable) -> None:
        self._context: Final = context
        self._bus: Final = context.bus
        self._specs: Final = specs
        self._wake: Final = asyncio.Event()

    @property
    def underway(self) -> dict[str, PoolReload]:
        """By pool."""
        found = desired_state.reloads(self._specs)
        return {pool: each for pool, each in found.items() if each.state is ReloadState.UNDERWAY}

    def look(self) -> None:
        """Something may have been decided."""
        self._wake.set()

    async def decide_always(self) -> None:
        """Until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while underway := self.underway:
                try:
                    await self._decide(underway)
                except BusError as error:
                    log.info("a reload waits for the bus: %s", error)
                try:
                    async with asyncio.timeout(LOOK_EVERY_S):
                        await self._wake.wait()
                    self._wake.clear()
                except TimeoutError:
                    continue

    async def _decide(self, underway: dict[str, PoolReload]) -> None:
        nodes = [subjects.last_token(each.subject) for each in await self._alive("node.*")]
        replicas = [record for each in await self._alive("replica.*.*") if (record := _replica(each)) is not None]
        specs = desired_state.pools(self._specs)
        drains = desired_state.drains(self._specs)
        for pool_id, reload in underway.items():
            if any(self._specs.is_newer(key) for key in (subjects.pool_key(pool_id), subjects.reload_key(pool_id))):
                continue  # what a newer release wrote is known to its nodes alone, and would be overwritten unread
            seq, spec = self._specs.seq(subjects.pool_key(pool_id)), specs.get(pool_id)
            found = verdict(
                reload,
                spec,
                nodes=nodes,
                replicas=[each for each in replicas if each.pool_id == pool_id],
                drained=pool_id in drains,
                now_ms=now_ms(),
            )
            try:
                if isinstance(found, Switch) and spec is not None:
                    await self._store(pool_id, with_model(spec, reload.new_model_ref), seq)
                elif found is not None and not isinstance(found, Switch):
                    await self._end(ended(reload, found, now_ms()), found)
            except WrongSequence:
                log.debug("somebody else decided on the reload of pool %s", pool_id)

    async def _alive(self, keys: str) -> list[Any]:
        found = await self._bus.snapshot(streams.REG, subjects.registry(keys))
        return [message for message in found if not message.deleted]

    async def _store(self, pool_id: str, spec: PoolSpec, expect_seq: int) -> None:
        """The pool changes over."""
        subject = subjects.spec(subjects.pool_key(pool_id))
        await self._bus.store(subject, msgspec.json.encode(spec), expect_seq=expect_seq, headers=spec_headers(spec))

    async def _end(self, reload: PoolReload, outcome: object) -> None:
        key = subjects.reload_key(reload.pool_id)
        note = self._note(reload)
        stored = await self._bus.store(
            subjects.spec(key),
            msgspec.json.encode(reload),
            expect_seq=self._specs.seq(key),
            headers=change_note.with_note(spec_headers(reload), note),
        )
        failed = isinstance(outcome, Failed)
        narrate(
            log,
            f"pool {reload.pool_id} {'keeps' if failed else 'has'} the model "
            f"{f'{reload.old_model_ref}: {reload.last_error}' if failed else reload.new_model_ref}",
            actor="poold",
            action=f"reload.{reload.state}",
            target=reload.pool_id,
            level=logging.WARNING if failed else logging.INFO,
        )
        await self._context.audit.record(change_note.stored(note, streams.SPEC, stored.seq))

    def _note(self, reload: PoolReload) -> AuditRecord:
        return AuditRecord(
            event=AuditEvent.POOL_CHANGED,
            task_id=reload.pool_id,
            at_ms=reload.ended_ms,
            actor=f"poold/{self._context.node_id}",
            identity=reload.identity,
            channel=reload.channel,
            pool_id=reload.pool_id,
            detail={
                "command": f"reload {reload.state}",
                "new_model_ref": reload.new_model_ref,
                "old_model_ref": reload.old_model_ref,
                "last_error": reload.last_error,
            },
        )


def _replica(message: Any) -> ReplicaRecord | None:
    """None for what cannot be read: then its place counts as not ready."""
    try:
        return decode(Kind.REGISTRY, REPLICA_DECODER, message.data, message.headers)
    except msgspec.DecodeError as error:
        log.warning("%s cannot be read: %s", message.subject, error)
        return None
