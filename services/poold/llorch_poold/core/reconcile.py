"""Desired replicas of this node, and what must change to get there. Pure: pools and devices in, changes out."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from llorch_poold.core.devices import DeviceMask, DeviceRefusal, mask_of
from llorch_shared.identifiers import is_name
from llorch_shared.wire.policy import (
    AdmissionSpec,
    AffinitySpec,
    DeadlineSpec,
    PreemptionSpec,
    QueueSpec,
    WaitingSpec,
)
from llorch_shared.wire.registry import Gpu
from llorch_shared.wire.spec import PoolSpec, TimeoutSpec

_NO_PART_OF_A_PROCESS: Final[dict[str, Any]] = {
    "queue": QueueSpec(),
    "admission": AdmissionSpec(),
    "deadlines": DeadlineSpec(),
    "preemption": PreemptionSpec(),
    "affinity": AffinitySpec(),
    "canary": None,
    "breaker": None,
    "waiting": WaitingSpec(),
    "require_same_engine_version": True,
    "timeouts": TimeoutSpec(),
    "replicas": 1,
    "nodes": (),
}
"""Keys that the scheduler, the gateways or this node obey without another engine process: a policy changes while the
engines of its pool go on."""


@dataclass(frozen=True, slots=True)
class Desired:
    """One replica as it should be. `refusal` says why it must not be started."""

    replica_id: str
    spec: PoolSpec
    device: DeviceMask
    refusal: str = ""

    def same_process(self, other: "Desired") -> bool:
        """True when a change from one to the other needs no new engine process."""
        return (
            _process_part(self.spec) == _process_part(other.spec)
            and self.device == other.device
            and self.refusal == other.refusal
        )


@dataclass(frozen=True, slots=True)
class Changes:
    start: tuple[Desired, ...] = ()
    stop: tuple[str, ...] = ()
    restart: tuple[Desired, ...] = ()
    adopt: tuple[Desired, ...] = ()
    """Same process, other policy or limits."""


def desired_replicas(
    specs: Iterable[PoolSpec], *, node_id: str, gpus: tuple[Gpu, ...], gpu_problem: str, profile: str
) -> dict[str, Desired]:
    """Replicas by id, in the order of pools and numbers. A replica id that is no name is left out."""
    wanted: dict[str, Desired] = {}
    for spec in sorted(specs, key=lambda spec: spec.id):
        if spec.nodes and node_id not in spec.nodes:
            continue
        mask = mask_of(spec.devices, gpus=gpus, gpu_problem=gpu_problem, profile=profile)
        refusal = mask.reason if isinstance(mask, DeviceRefusal) else ""
        device = mask if isinstance(mask, DeviceMask) else DeviceMask("cpu" if spec.devices == "cpu" else "none")
        for number in range(1, spec.replicas + 1):
            replica_id = f"{spec.id}-{node_id}-{number}"
            if is_name(replica_id):
                wanted[replica_id] = Desired(replica_id, spec, device, refusal)
    return wanted


def changes(actual: Mapping[str, Desired], wanted: Mapping[str, Desired]) -> Changes:
    both = [replica_id for replica_id in wanted if replica_id in actual and actual[replica_id] != wanted[replica_id]]
    return Changes(
        start=tuple(wanted[replica_id] for replica_id in wanted if replica_id not in actual),
        stop=tuple(replica_id for replica_id in actual if replica_id not in wanted),
        restart=tuple(wanted[each] for each in both if not actual[each].same_process(wanted[each])),
        adopt=tuple(wanted[each] for each in both if actual[each].same_process(wanted[each])),
    )


def _process_part(spec: PoolSpec) -> PoolSpec:
    return msgspec.structs.replace(spec, **_NO_PART_OF_A_PROCESS)
