"""`model_state`: one series of each model of the catalog, of the state that it is in (ORCH-3073)."""

from typing import Final

from llorch_shared.metrics import Metrics
from llorch_shared.wire.catalog import CatalogEntry, ModelState


class ModelGauges:
    def __init__(self, metrics: Metrics) -> None:
        self._gauge: Final = metrics.gauge("model_state")
        self._shown: Final[dict[str, ModelState]] = {}

    def changed(self, model_id: str, entry: CatalogEntry | None) -> None:
        if (before := self._shown.pop(model_id, None)) is not None:
            self._gauge.remove(model_id, before)
        if entry is not None:
            self._shown[model_id] = entry.state
            self._gauge.labels(model_id, entry.state).set(1)
