"""The question about GPUs. An absent driver, library or card is an answer, never an exception."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from llorch_shared.wire.registry import Gpu


@dataclass(frozen=True, slots=True)
class GpuReport:
    """`problem` says why there is no usable GPU; empty when there is at least one."""

    gpus: tuple[Gpu, ...] = ()
    driver: str = ""
    problem: str = ""

    def on(self, uuids: Collection[str]) -> list[Gpu]:
        """Those of a device mask."""
        return [gpu for gpu in self.gpus if gpu.uuid in uuids]


class GpuProbe(Protocol):
    def read(self) -> GpuReport:
        """The state now. Blocking for milliseconds; never raises."""

    def close(self) -> None: ...
