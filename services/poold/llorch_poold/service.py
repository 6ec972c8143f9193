"""Wires one node agent and runs it until it is asked to stop."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Final

from llorch_poold.audit_repair import repair_audit
from llorch_poold.core.fence import Fence
from llorch_poold.core.retention import FrameRetention
from llorch_poold.gpu.nvml import Nvml
from llorch_poold.node import Node
from llorch_poold.node_context import NodeContext
from llorch_poold.outlet import FenceLimit, TokenOutlet
from llorch_poold.pool_loads import PoolLoads
from llorch_poold.process import EngineProcesses
from llorch_poold.run_store import RunStore
from llorch_poold.token_log import TokenLog
from llorch_shared import streams
from llorch_shared.audit import Audit
from llorch_shared.bus import nats
from llorch_shared.bus.patience import BUS_ENDED, BUS_LOST, ensure_patiently, unless_stopped
from llorch_shared.bus.port import Bus, BusError
from llorch_shared.lifecycle import Stop, first_of
from llorch_shared.logs import narrate
from llorch_shared.metrics import Metrics
from llorch_shared.metrics_endpoint import MetricsEndpoint
from llorch_shared.session_store import SessionStore
from llorch_shared.settings import Secret, Settings
from llorch_shared.shared_walks import SharedWalks
from llorch_shared.wall_clock import now_ms

log = logging.getLogger(__name__)

REPAIR_AGAIN_S: Final = 1.0


async def serve(settings: Settings, environment: Mapping[str, str], password: Secret, stop: Stop) -> int:
    """Returns the exit code. Raises SettingsError."""
    metrics = Metrics()
    endpoint = MetricsEndpoint(metrics, settings.poold.metrics_addr, key="poold.metrics_addr")
    processes = EngineProcesses(settings.state_path(), settings.poold.node_id)
    for orphan in await asyncio.to_thread(processes.reap_orphans):
        narrate(
            log,
            f"an engine of an earlier life is ended, pid {orphan.pid}",
            actor="poold",
            action="orphan.reaped",
            target=orphan.replica_id,
            level=logging.WARNING,
        )
    fence = Fence(streams.REGISTRY_TTL_S, grace_s=settings.poold.cut_off_grace_ms / 1000)
    try:
        bus = await unless_stopped(
            stop,
            nats.connect(
                settings.nats,
                name=f"poold/{settings.poold.node_id}",
                password=password,
                metrics=metrics,
                on_closed=lambda: stop.wish(BUS_ENDED),
                send_limit=FenceLimit(fence),
                others_first=True,
            ),
        )
        if bus is None:
            return 0
        try:
            base = streams.base(token_bytes_max=settings.nats.token_bytes_max, replicas=settings.nats.replicas)
            if await ensure_patiently(bus, base, stop):
                context = _context(bus, settings, metrics, fence)
                node = Node(
                    context,
                    settings,
                    probe=Nvml(),
                    processes=processes,
                    environment=environment,
                    metrics_addr=endpoint.address,
                )
                await _serve_on(context, node, stop)
        finally:
            await bus.close()
    finally:
        endpoint.close()
    return BUS_LOST if stop.reason == BUS_ENDED else 0


def _context(bus: Bus, settings: Settings, metrics: Metrics, fence: Fence) -> NodeContext:
    actor = f"poold/{settings.poold.node_id}"
    audit = Audit(bus, actor=actor)
    return NodeContext(
        node_id=settings.poold.node_id,
        bus=bus,
        runs=RunStore(bus),
        fence=fence,
        outlet=TokenOutlet(bus, fence),
        retention=FrameRetention(settings.poold.frames_kept_bytes),
        audit=audit,
        sessions=SessionStore(bus, audit, actor=actor),
        loads=PoolLoads(bus),
        token_log=TokenLog(bus, settings.poold.node_id),
        backlogs=SharedWalks(bus, streams.TOK),
        metrics=metrics,
        settings=settings.poold,
        share_bytes=settings.nats.tenant_object_bytes_max,
    )


async def _serve_on(context: NodeContext, node: Node, stop: Stop) -> None:
    """Until the wish to stop; then drained, with no engine left."""
    context.audit.start()
    try:
        if await node.start(stop):
            narrate(
                log,
                f"node {context.node_id} serves",
                actor="poold",
                action="node.started",
                target=context.node_id,
            )
            await first_of(stop.wait(), node.run(), _repair(context, stop))
    finally:
        narrate(
            log,
            f"node {context.node_id} drains: {stop.reason or 'a fault'}",
            actor="poold",
            action="node.drained",
            target=context.node_id,
        )
        await node.drain(stop.reason or "a fault of the node")
        await context.audit.close()
        await context.outlet.close()


async def _repair(context: NodeContext, stop: Stop) -> None:
    """Once after the start; then wait for the end like everybody else."""
    while not stop:
        try:
            missing = await repair_audit(context.bus, context.audit, node_id=context.node_id, now_ms=now_ms())
        except BusError as error:
            log.info("looking for unaudited ends waits for the bus: %s", error)
            await stop.wait(REPAIR_AGAIN_S)
        else:
            if missing:
                log.warning("ends of an earlier life of this node were not audited and are now: %d", missing)
            await stop.wait()
