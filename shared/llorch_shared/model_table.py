"""The catalog as admission asks for it, followed on the bus."""

import logging
from collections.abc import Callable
from typing import Final

from llorch_shared.bus.port import Bus
from llorch_shared.live_table import LiveTable
from llorch_shared.metrics import Metrics
from llorch_shared.models import Models
from llorch_shared.readable import readable
from llorch_shared.wire.catalog import ENTRY_DECODER, CatalogEntry

log = logging.getLogger(__name__)


class ModelTable:
    def __init__(
        self,
        bus: Bus,
        metrics: Metrics | None = None,
        *,
        changed: Callable[[str, CatalogEntry | None], None] | None = None,
    ) -> None:
        """`changed` is told the id and entry of each model that changes, None for one that was deleted."""
        self.models: Final = Models()
        self._told: Final = changed
        self._table: Final = LiveTable(bus, bucket="CAT", changed=self._changed, metrics=metrics)

    async def start(self) -> None:
        """Raises BusError when the bucket cannot be read; may be called again then."""
        await self._table.start()

    async def close(self) -> None:
        await self._table.close()

    def _changed(self, key: str, value: bytes | None) -> None:
        kind, _, name = key.partition(".")
        if kind != "model":
            return
        entry = None if value is None else readable(ENTRY_DECODER, value, f"the catalog's entry of {name}")
        if value is None or entry is not None:
            self.models.put(name, entry)
            if self._told is not None:
                self._told(name, entry)
