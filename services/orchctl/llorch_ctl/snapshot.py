"""The system at one moment, read from the bus and asked of the gateway: what `orchctl status` and `engine` show.

Everything but the gateway's readiness comes from streams and buckets, so it is the same from every machine.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Mapping
from typing import Final

import aiohttp
import msgspec

from llorch_ctl import pools
from llorch_ctl.core.queues import ClassStatus, classes_of
from llorch_ctl.gateway_client import bearer
from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus, BusError, Message
from llorch_shared.desired.pools import DRAINS
from llorch_shared.logs import redact
from llorch_shared.settings_loading import secret
from llorch_shared.wire.registry import (
    LEASE_DECODER,
    LOAD_DECODER,
    NODE_DECODER,
    REPLICA_DECODER,
    SCHEDULER_DECODER,
    NodeRecord,
    PoolLoad,
    ReplicaRecord,
    ReplicaState,
)
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Engine, Priority

ANSWER_WITHIN_S: Final = 2.0
LOADS_WITHIN_S: Final = 1.5
"""Each pool's load is told at least every second."""


class ServiceStatus(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    ok: bool
    where: str
    detail: str = ""


class PoolStatus(msgspec.Struct, frozen=True, kw_only=True):
    pool_id: str
    engine: Engine
    model_ref: str
    replicas_wanted: int
    """Per node."""
    replicas_ready: int
    slots_total: int
    running: int
    queued: dict[str, int]
    capacity: int
    """Waiting tasks per priority, where a class has no capacity of its own."""
    drained: bool = False
    """Until somebody undrains it: then it wants its replicas again."""
    loading_ms: int = 0
    """With no ready replica: expected time until one is."""
    classes: tuple[ClassStatus, ...] = ()
    """As the scheduler told last; empty while it tells nothing."""


class SystemStatus(msgspec.Struct, frozen=True, kw_only=True):
    healthy: bool
    """Every service serves, and every pool that wants replicas has a ready one."""
    services: tuple[ServiceStatus, ...]
    nodes: tuple[NodeRecord, ...]
    pools: tuple[PoolStatus, ...]
    replicas: tuple[ReplicaRecord, ...]


async def take(bus: Bus, *, nats_url: str, gateway_url: str, tls: ssl.SSLContext | bool = True) -> SystemStatus:
    """Raises BusError when the streams do not exist, which means that nothing was ever started on this bus."""
    messages = [m for m in await bus.snapshot(streams.REG, subjects.registry(">")) if not m.deleted]
    values = {subjects.registry_key(m.subject): m.data for m in messages}
    nodes = tuple(NODE_DECODER.decode(data) for key, data in values.items() if key.startswith("node."))
    replicas = tuple(REPLICA_DECODER.decode(data) for key, data in values.items() if key.startswith("replica."))
    wanted = await pools.stored(bus)
    drained = await DRAINS.all(bus)
    lives = any(key.startswith("scheduler.") for key in values)
    loads = await told_loads(bus, frozenset(wanted)) if lives else {}
    pool_rows = [
        await _pool(bus, pool, replicas, loads.get(pool.id), drained=pool.id in drained) for pool in wanted.values()
    ]
    services = [
        ServiceStatus(name="nats-server", ok=True, where=redact(nats_url)),
        await _gateway(gateway_url, tls),
        *_schedulers(values),
        *_nodes(nodes),
        *(await asyncio.gather(*(_provisioner(bus, node.node_id) for node in nodes))),
    ]
    return SystemStatus(
        healthy=all(service.ok for service in services)
        and all(row.replicas_ready > 0 or row.replicas_wanted == 0 for row in pool_rows),
        services=tuple(services),
        nodes=nodes,
        pools=tuple(pool_rows),
        replicas=tuple(sorted(replicas, key=lambda replica: replica.replica_id)),
    )


async def _pool(
    bus: Bus, pool: PoolSpec, replicas: tuple[ReplicaRecord, ...], load: PoolLoad | None, *, drained: bool
) -> PoolStatus:
    own = [replica for replica in replicas if replica.pool_id == pool.id]
    ready = [replica for replica in own if replica.state is ReplicaState.READY]
    return PoolStatus(
        pool_id=pool.id,
        engine=pool.engine,
        model_ref=pool.model,
        replicas_wanted=0 if drained else pool.replicas,
        drained=drained,
        replicas_ready=len(ready),
        slots_total=sum(replica.slots_total for replica in ready),
        running=sum(len(replica.active) for replica in own),
        queued={str(priority): await _depth(bus, pool.id, priority) for priority in Priority},
        capacity=pool.queue.capacity,
        loading_ms=load.loading_ms if load is not None else 0,
        classes=classes_of(pool, load) if load is not None else (),
    )


async def told_loads(bus: Bus, wanted: frozenset[str]) -> dict[str, PoolLoad]:
    """The next load report of each pool; without those that are not told in time."""
    found: dict[str, PoolLoad] = {}
    complete = asyncio.Event()

    def heard(message: Message) -> None:
        try:
            load = LOAD_DECODER.decode(message.data)
        except msgspec.MsgspecError:
            return  # of another release: the pool is shown without it, as one that nothing is told of
        found[load.pool_id] = load
        if wanted <= found.keys():
            complete.set()

    subscription = await bus.subscribe(subjects.ALL_LOADS, heard)
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOADS_WITHIN_S if wanted else 0):
                await complete.wait()
    finally:
        await subscription.close()
    return found


async def _depth(bus: Bus, pool_id: str, priority: Priority) -> int:
    """Tasks stored in one queue; 0 while the scheduler has not created it."""
    try:
        return (await bus.stream_state(streams.admission_stream(pool_id, priority))).messages
    except BusError:
        return 0


async def _gateway(url: str, tls: ssl.SSLContext | bool) -> ServiceStatus:
    headers = bearer(secret("LLORCH_API_TOKEN"))
    limit = aiohttp.ClientTimeout(total=ANSWER_WITHIN_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=limit, headers=headers) as http,
            http.get(url + "/readyz", ssl=tls) as answer,
        ):
            text = (await answer.text())[:200]
            return ServiceStatus(
                name="gateway", ok=answer.status == 200, where=url, detail="" if answer.status == 200 else text
            )
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return ServiceStatus(name="gateway", ok=False, where=url, detail=f"does not answer: {error or 'in time'}")


def _schedulers(values: Mapping[str, bytes]) -> list[ServiceStatus]:
    """Who lives, and for which shards each decides."""
    living = [SCHEDULER_DECODER.decode(data).instance for key, data in values.items() if key.startswith("scheduler.")]
    if not living:
        return [ServiceStatus(name="scheduler", ok=False, where="", detail="none is registered")]
    held: dict[str, list[str]] = {instance: [] for instance in sorted(living)}
    for shard in range(subjects.SHARDS):
        if (lease := values.get(subjects.lease_key(shard))) is not None:
            held.setdefault(LEASE_DECODER.decode(lease).holder, []).append(str(shard))
    held.pop("", None)
    return [
        ServiceStatus(
            name="scheduler",
            ok=instance in living,
            where=instance,
            detail=f"decides for shards {', '.join(shards)}" if shards else "standby",
        )
        for instance, shards in held.items()
    ]


def _nodes(nodes: tuple[NodeRecord, ...]) -> list[ServiceStatus]:
    if not nodes:
        return [ServiceStatus(name="poold", ok=False, where="", detail="no node is registered")]
    return [
        ServiceStatus(name="poold", ok=True, where=node.node_id, detail=f"{node.version}, profile {node.profile}")
        for node in nodes
    ]


async def _provisioner(bus: Bus, node: str) -> ServiceStatus:
    try:
        await bus.request(subjects.provision_status(node), b"", timeout_s=ANSWER_WITHIN_S)
    except BusError as error:
        return ServiceStatus(
            name="provisioner", ok=False, where=node, detail=f"does not answer: {type(error).__name__}"
        )
    return ServiceStatus(name="provisioner", ok=True, where=node)
