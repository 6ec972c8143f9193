"""Pools of a retired model rest: each is drained, and taken back when the model is in use again. A drain that somebody
else wants is left as it is."""

import dataclasses
from collections.abc import Iterable

from llorch_shared.bus.port import Bus
from llorch_shared.desired import orders
from llorch_shared.desired.entries import Author
from llorch_shared.desired.pools import DRAINS, NotThere


async def rest(bus: Bus, pools: Iterable[str], model_id: str, by: Author, *, deadline_ms: int) -> None:
    """Raises BusError."""
    for pool in pools:
        if (await DRAINS.read(bus, pool)).value is None:
            try:
                await orders.drain(bus, pool, _for(model_id, by), deadline_ms=deadline_ms)
            except NotThere:
                continue


async def wake(bus: Bus, pools: Iterable[str], model_id: str, by: Author) -> None:
    """Raises BusError."""
    for pool in pools:
        drain = (await DRAINS.read(bus, pool)).value
        if drain is not None and drain.identity == _by(model_id):
            try:
                await orders.undrain(bus, pool, _for(model_id, by))
            except NotThere:
                continue


def _for(model_id: str, by: Author) -> Author:
    return dataclasses.replace(by, identity=_by(model_id))


def _by(model_id: str) -> str:
    return f"catalog:{model_id}"
