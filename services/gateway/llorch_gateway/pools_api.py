"""Operations on pools, and what the system can serve. A change is one of the desired state; the nodes and the scheduler
carry it out, and health tells what has become of it."""

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import msgspec

from llorch_gateway.call import Call
from llorch_gateway.core.capability import capabilities, pool_health, without_tasks
from llorch_gateway.operations import Answer, Ask, Handlers
from llorch_gateway.snapshot import Snapshot
from llorch_shared.auth import LOCAL
from llorch_shared.bus.port import Bus, WrongSequence
from llorch_shared.desired import orders, pools
from llorch_shared.desired.entries import Author
from llorch_shared.desired.orders import Underway
from llorch_shared.desired.pools import DRAINS, POOLS, Exists, HiddenValue, NotThere
from llorch_shared.errors import OrchError, invalid, not_found
from llorch_shared.pool_keys import without_secrets
from llorch_shared.wire.desired import DrainRequest, PoolList, PoolView, ReloadRequest
from llorch_shared.wire.provisioning_spec import ProvisioningSpec
from llorch_shared.wire.spec import PoolSpec

SPEC_BYTES_MAX: Final = 64 * 1024
"""Every process of the system holds every pool."""
POOLS_MAX: Final = 256
"""As many as the pool label of the metrics may have values."""

Authors = Callable[[Call], Author]
T = TypeVar("T")


def handlers(snapshot: Snapshot, bus: Bus, author: Authors) -> Handlers:
    return {**_told(snapshot), **_kept(bus, author), **_asked(bus, author)}


def _told(snapshot: Snapshot) -> Handlers:
    async def get_capabilities(_ask: Ask) -> Answer:
        return Answer(capabilities(snapshot.pools, snapshot.replicas, snapshot.loads, snapshot.drains))

    async def get_health(ask: Ask) -> Answer:
        """Without the ids of tasks for a caller that is bound to its tenant: most are others'."""
        pool = ask.given["id"]
        if pool not in snapshot.pools:
            raise not_found(f"pool {pool}")
        told = pool_health(
            snapshot.replicas.get(pool, ()),
            snapshot.loads.get(pool),
            reload=snapshot.reloads.get(pool),
            drain=snapshot.drains.get(pool),
        )
        return Answer(without_tasks(told) if ask.call.bound else told)

    return {"getCapabilities": get_capabilities, "getPoolHealth": get_health}


def _kept(bus: Bus, author: Authors) -> Handlers:
    """The specifications."""

    async def list_pools(ask: Ask) -> Answer:
        ask.call.check_operator()
        found, drained = await POOLS.all(bus), await DRAINS.all(bus)
        views = (
            PoolView(revision=seq, drained=name in drained, spec=without_secrets(pool))
            for name, (pool, seq) in sorted(found.items())
        )
        return Answer(PoolList(pools=tuple(views)))

    async def get_pool(ask: Ask) -> Answer:
        ask.call.check_operator()
        entry = await POOLS.read(bus, ask.given["id"])
        if entry.value is None:
            raise not_found(f"pool {ask.given['id']}")
        return _shown(entry.value, entry.seq)

    async def create_pool(ask: Ask) -> Answer:
        ask.call.check_operator()
        pool = _wanted(ask, None)
        if len(await POOLS.all(bus)) >= POOLS_MAX:
            raise invalid(f"there are {POOLS_MAX} pools, and no more may be", status=409)
        made = await _told_apart(pools.create(bus, pool, author(ask.call)), pool.id)
        return _shown(made.pool, made.revision, status=201)

    async def replace_pool(ask: Ask) -> Answer:
        ask.call.check_operator()
        present = (await POOLS.read(bus, ask.given["id"])).value
        pool = _wanted(ask, present)
        if pool.id != ask.given["id"]:
            raise invalid(f"id: this is pool {ask.given['id']}, and its id cannot change")
        over = version_of(ask)
        made = await _told_apart(pools.replace(bus, pool, author(ask.call), over=over), pool.id)
        return _shown(made.pool, made.revision)

    async def delete_pool(ask: Ask) -> Answer:
        ask.call.check_operator()
        if not await pools.remove(bus, ask.given["id"], author(ask.call)):
            raise not_found(f"pool {ask.given['id']}")
        return Answer(status=204)

    return {
        "listPools": list_pools,
        "getPool": get_pool,
        "createPool": create_pool,
        "replacePool": replace_pool,
        "deletePool": delete_pool,
    }


def _asked(bus: Bus, author: Authors) -> Handlers:
    """What is asked of a pool besides."""

    async def drain_pool(ask: Ask) -> Answer:
        ask.call.check_operator()
        wish, pool = ask.body(DrainRequest), ask.given["id"]
        drain = orders.drain(bus, pool, author(ask.call), deadline_ms=wish.deadline_ms)
        return Answer(await _told_apart(drain, pool), 202)

    async def undrain_pool(ask: Ask) -> Answer:
        ask.call.check_operator()
        await _told_apart(orders.undrain(bus, ask.given["id"], author(ask.call)), ask.given["id"])
        return Answer(status=204)

    async def reload_pool(ask: Ask) -> Answer:
        ask.call.check_operator()
        wish, pool = ask.body(ReloadRequest), ask.given["id"]
        reload = orders.reload(
            bus, pool, author(ask.call), new_model_ref=wish.new_model_ref, deadline_ms=wish.deadline_ms
        )
        return Answer(await _told_apart(reload, pool), 202)

    return {"drainPool": drain_pool, "undrainPool": undrain_pool, "reloadPool": reload_pool}


def version_of(ask: Ask) -> int:
    return int(ask.given["If-Match"].strip('"'))


def etag(seq: int) -> tuple[tuple[str, str], ...]:
    return (("ETag", f'"{seq}"'),)


def _wanted(ask: Ask, present: PoolSpec | None) -> PoolSpec:
    """The pool that the operator wants. Raises OrchError for what this one may not want."""
    pool = ask.body(PoolSpec)
    if len(msgspec.json.encode(pool)) > SPEC_BYTES_MAX:
        raise invalid(f"a pool's specification may have {SPEC_BYTES_MAX} bytes", status=413)
    before = without_secrets(present).provisioning if present is not None else ProvisioningSpec()
    if ask.call.identity == LOCAL.crumb and without_secrets(pool).provisioning != before:
        raise invalid(
            "provisioning: what is run on the nodes may be said only by a caller with a token",
            status=403,
            hint="set AUTH_TOKEN or a token file at the gateway, or use orchctl",
        )
    return pool


def _shown(pool: PoolSpec, seq: int, *, status: int = 200) -> Answer:
    return Answer(without_secrets(pool), status, etag(seq))


async def _told_apart(change: Awaitable[T], pool: str) -> T:
    """What can be wrong with a change, as callers are told."""
    try:
        return await change
    except NotThere as error:
        raise not_found(f"pool {pool}") from error
    except Exists as error:
        raise _conflict(f"there is a pool {pool}", pool) from error
    except Underway as error:
        raise _conflict(str(error), pool) from error
    except HiddenValue as error:
        raise invalid(str(error)) from error
    except WrongSequence as error:
        raise invalid(f"pool {pool} was changed meanwhile: read it again", status=412) from error


def _conflict(message: str, pool: str) -> OrchError:
    known = invalid(message, status=409)
    known.body = msgspec.structs.replace(known.body, pool_id=pool)
    return known
