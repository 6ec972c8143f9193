"""Compares a model on this node with the catalog and writes the outcome there (ORCH-3037, 3064).

The whole file is read, one model at a time: the digest that was computed when it was fetched says nothing about what
the disk holds today. Another digest than the catalog's is a failure whatever else is known.
"""

import asyncio
import logging
from pathlib import Path
from typing import Final

import msgspec

from llorch_provisioner.adapters import files
from llorch_provisioner.adapters.catalog import ModelEntry
from llorch_provisioner.cache import Cache
from llorch_shared.bus.port import Bus, BusError
from llorch_shared.catalog import Catalog, Contended
from llorch_shared.logs import narrate
from llorch_shared.metrics import Metrics
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.catalog import CatalogEntry, Verification, VerifyAnswer, VerifyModel, VerifyResult
from llorch_shared.wire.version import Unreadable

log: Final = logging.getLogger(__name__)

WAITING_MAX: Final = 16
WRITE_TRIES: Final = 6
RETRY_FIRST_S: Final = 0.5


class Verifications:
    """`begin` answers at once; `close` ends what has begun."""

    def __init__(self, bus: Bus, cache: Cache, metrics: Metrics, *, node_id: str) -> None:
        self._catalog: Final = Catalog(bus)
        self._cache: Final = cache
        self._node: Final = node_id
        self._counter: Final = metrics.counter("catalog_verifications_total")
        self._turn: Final = asyncio.Lock()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def begin(self, wish: VerifyModel) -> VerifyAnswer:
        model = self._cache.models.find(lambda known: known.model_ref == wish.model_ref)
        if model is None:
            return VerifyAnswer(started=False, problem=f"this node has no model {wish.model_ref}")
        if wish.catalog_id in self._tasks:
            return VerifyAnswer(started=True)
        if len(self._tasks) >= WAITING_MAX:
            return VerifyAnswer(started=False, problem="too many verifications wait here")
        task = asyncio.create_task(self._verify(wish, model), name=f"verify {wish.catalog_id}")
        self._tasks[wish.catalog_id] = task
        task.add_done_callback(lambda _: self._tasks.pop(wish.catalog_id, None))
        return VerifyAnswer(started=True)

    async def close(self) -> None:
        tasks = tuple(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _verify(self, wish: VerifyModel, model: ModelEntry) -> None:
        async with self._turn:
            found = outcome(wish, await _digest(model), self._node, now_ms())
        self._counter.labels(found.result, found.reason, wish.engine).inc()
        narrate(
            log,
            f"verified model {wish.catalog_id}: {found.result}{': ' if found.message else ''}{found.message}",
            actor=f"provisioner/{self._node}",
            action="catalog.verify",
            target=wish.catalog_id,
            level=logging.WARNING if found.result is VerifyResult.FAIL else logging.INFO,
        )
        await self._write(wish, found)

    async def _write(self, wish: VerifyModel, found: Verification) -> None:
        def edit(entry: CatalogEntry) -> CatalogEntry:
            if entry.digest != wish.digest:
                return entry
            return msgspec.structs.replace(entry, verification=found, last_verified_ms=found.verified_ms)

        delay = RETRY_FIRST_S
        for _ in range(WRITE_TRIES):
            try:
                await self._catalog.change(wish.catalog_id, edit)
                return
            except Unreadable as error:
                log.warning("the entry of %s cannot be read: %s", wish.catalog_id, error)
                return
            except (BusError, Contended) as error:
                log.info("the verification of %s waits for the bus: %s", wish.catalog_id, error)
            await asyncio.sleep(delay)
            delay *= 2
        log.warning("the verification of %s could not be written", wish.catalog_id)


async def _digest(model: ModelEntry) -> str:
    """`sha256:<hex>`; empty when the file cannot be read."""
    try:
        return f"sha256:{await asyncio.to_thread(files.sha256_of, Path(model.local_path), lambda _done, _total: None)}"
    except OSError as error:
        log.warning("model %s cannot be read: %s", model.id, error.strerror)
        return ""


def outcome(wish: VerifyModel, digest: str, node_id: str, at_ms: int) -> Verification:
    """The worse of what the file and what the gateway says. Pure."""
    result, reason, message = wish.result, wish.reason, wish.message
    if not digest:
        result, reason, message = VerifyResult.FAIL, "unreadable", "the model's file cannot be read"
    elif digest != wish.digest:
        result, reason = VerifyResult.FAIL, "digest_mismatch"
        message = f"the file has {digest}, the catalog {wish.digest}"
    return Verification(
        result=result, reason=reason, message=message, node_id=node_id, digest=digest, verified_ms=at_ms
    )
