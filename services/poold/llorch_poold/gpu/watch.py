"""The GPUs of this node as they were last seen, and who is told when they changed."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from llorch_poold.gpu.probe import GpuProbe, GpuReport
from llorch_shared.logs import narrate

log = logging.getLogger(__name__)

PROBE_EVERY_S: Final = 5.0


class GpuWatch:
    """`changed`: another GPU, or one is usable that was not, or the other way round."""

    def __init__(self, probe: GpuProbe, node_id: str, *, changed: Callable[[], None]) -> None:
        self._probe: Final = probe
        self._node_id: Final = node_id
        self._changed: Final = changed
        self._report = GpuReport(problem="GPUs have not been looked for yet")

    def report(self) -> GpuReport:
        return self._report

    async def look(self) -> None:
        self._report = await asyncio.to_thread(self._probe.read)

    async def look_always(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(PROBE_EVERY_S)
            before = _usable(self._report)
            await self.look()
            if before != _usable(self._report):
                narrate(
                    log,
                    f"the GPUs of this node changed: {self._report.problem or 'usable again'}",
                    actor="poold",
                    action="gpu.changed",
                    target=self._node_id,
                    level=logging.WARNING,
                )
                self._changed()

    def close(self) -> None:
        self._probe.close()


def _usable(report: GpuReport) -> tuple[object, ...]:
    return (report.problem, tuple((gpu.index, gpu.uuid, gpu.fault) for gpu in report.gpus))
