"""Device masks: which devices one engine process may see, and why a pool's wish cannot be met."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llorch_shared.wire.registry import Gpu


@dataclass(frozen=True, slots=True)
class DeviceMask:
    """`label` is what clients see: `cpu` in the marked carve-out, else `cuda:0` or `cuda:0,1`."""

    label: str
    uuids: tuple[str, ...] = ()

    @property
    def cpu(self) -> bool:
        return not self.uuids


@dataclass(frozen=True, slots=True)
class DeviceRefusal:
    reason: str


CPU = DeviceMask(label="cpu")


def mask_of(
    devices: tuple[int, ...] | Literal["cpu", "all"], *, gpus: tuple[Gpu, ...], gpu_problem: str, profile: str
) -> DeviceMask | DeviceRefusal:
    """The mask of one replica. CPU only by the explicit carve-out of profile `ci`, never as a fallback (ORCH-1102)."""
    if devices == "cpu":
        if profile == "ci":
            return CPU
        return DeviceRefusal('devices = "cpu" is refused: engines run on GPUs unless the profile is ci (ORCH-1102)')
    if gpu_problem:
        return DeviceRefusal(f"no usable GPU on this node: {gpu_problem} (ORCH-1102)")
    by_index = {gpu.index: gpu for gpu in gpus}
    chosen = [by_index[index] for index in devices if index in by_index] if devices != "all" else list(gpus)
    if devices != "all":
        if not devices:
            return DeviceRefusal('devices is an empty list: name GPU indices, or "all"')
        if missing := [index for index in devices if index not in by_index]:
            return DeviceRefusal(f"this node has no GPU {', '.join(map(str, missing))}")
        if faulty := next((gpu for gpu in chosen if gpu.fault), None):
            return DeviceRefusal(f"GPU {faulty.index} cannot be used: {faulty.fault}")
    chosen = [gpu for gpu in chosen if not gpu.fault]
    if not chosen:
        return DeviceRefusal("no usable GPU on this node (ORCH-1102)")
    return DeviceMask(
        label="cuda:" + ",".join(str(gpu.index) for gpu in chosen), uuids=tuple(gpu.uuid for gpu in chosen)
    )


def compute_capability(gpus: Sequence[Gpu]) -> str:
    """Of the weakest device of a mask, which is what an engine can use on all of them; empty when one is unknown."""
    known = [gpu.compute_capability for gpu in gpus if gpu.compute_capability]
    if len(known) < len(gpus) or not known:
        return ""
    return min(known, key=lambda capability: [int(part) for part in capability.split(".")])
