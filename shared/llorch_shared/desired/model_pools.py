"""What the state of a model asks of its pools: those of a retired one rest, and are taken back when it is in use again.
A drain that somebody else wants is left as it is.

The state is written first, these drains follow, and the audit record of the change comes last. So where the record is
missing, whoever was to write it may not have lived to write the drains either, and who makes up for it does both.
"""

import dataclasses
from collections.abc import Iterable

from llorch_shared import streams
from llorch_shared.bus.port import Bus
from llorch_shared.catalog import Catalog
from llorch_shared.desired import orders
from llorch_shared.desired.entries import Author
from llorch_shared.desired.pools import DRAINS, NotThere
from llorch_shared.models import ADMITTED
from llorch_shared.wire.catalog import CatalogEntry, ModelState
from llorch_shared.wire.spec import PoolSpec


async def follow(
    bus: Bus, entry: CatalogEntry, pools: Iterable[PoolSpec], by: Author, *, deadline_ms: int, unless_since_ms: int = 0
) -> None:
    """`unless_since_ms`, for who comes later: pools that somebody has drained or taken back since then, Unix
    milliseconds, are left as he wants them; 0 for none. Raises BusError, Unreadable."""
    own = [pool.id for pool in pools if pool.model == entry.source_url]
    if not own or (entry.state is not ModelState.RETIRED and entry.state not in ADMITTED):
        return
    rests = entry.state is ModelState.RETIRED
    if rests and await _has_other(bus, entry):
        return
    for pool_id in own:
        message = await bus.last(streams.SPEC, DRAINS.subject(pool_id))
        if message is not None and unless_since_ms and message.stored_ms >= unless_since_ms:
            continue
        drain = None if message is None else DRAINS.entry(message).value
        try:
            if rests and drain is None:
                await orders.drain(bus, pool_id, _for(entry.id, by), deadline_ms=deadline_ms)
            elif not rests and drain is not None and drain.identity == _by(entry.id):
                await orders.undrain(bus, pool_id, _for(entry.id, by))
        except NotThere:
            continue


async def _has_other(bus: Bus, entry: CatalogEntry) -> bool:
    """Whether another version of the same source may be used: then its pools go on."""
    others = (kept.entry for kept in await Catalog(bus).all() if kept.entry.id != entry.id)
    return any(other.source_url == entry.source_url and other.state in ADMITTED for other in others)


def _for(model_id: str, by: Author) -> Author:
    return dataclasses.replace(by, identity=_by(model_id))


def _by(model_id: str) -> str:
    return f"catalog:{model_id}"
