"""Desired replicas of this node, and what must change to get there. Pure: pools, reloads and devices in, changes out.

A pool has `replicas` places on a node, and a place one replica that serves. In a reload it has a second one, which
holds the new model and waits until the reload is decided everywhere (`core/reload.py`): then the specification names
either the new model, and the second takes over while the first drains, or the old one, and the second goes. Where the
devices have no room for both, the first drains before the second starts, and comes back when the reload fails.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

import msgspec

from llorch_poold.core.devices import DeviceMask, DeviceRefusal, mask_of
from llorch_shared.identifiers import is_name
from llorch_shared.wire.desired import PoolReload, ReloadState
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
SECOND: Final = "-b"
"""What the other of a place's two ids ends with; one id never has two processes."""


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
class Place:
    """What one place of a pool should hold. Its name is the first of its replica ids."""

    now: Desired
    reload_id: str = ""
    """Of the reload that is under way; else empty."""
    coming: Desired | None = None
    """With the new model; None without a reload."""
    tight: bool = False
    """The devices have no room for both."""

    @property
    def name(self) -> str:
        return self.now.replica_id

    @property
    def ids(self) -> tuple[str, ...]:
        """Both, where the second is a name, too."""
        second = f"{self.name}{SECOND}"
        return (self.name, second) if is_name(second) else (self.name,)


@dataclass(frozen=True, slots=True)
class Present:
    """One replica as it is."""

    place: str
    desired: Desired
    leaving: bool = False
    """It has been told to drain."""
    settled: bool = True
    """It serves, or has broken: not on its first way to ready."""
    reload_id: str = ""
    """It holds the new model of this reload, and waits."""
    no_room: bool = False
    """It would fit where it cannot start beside the one that serves."""


class Why(StrEnum):
    """Why a replica goes."""

    UNWANTED = "the pool no longer wants it"
    CHANGED = "its specification changed"
    REPLACED = "the pool has another model now"
    NO_ROOM = "the new model has no room beside it"
    GIVEN_UP = "the reload it was meant for is over"
    DRAINED = "its pool is drained"


def drain_label(reason: str) -> str:
    """The reason of a drain as metrics have it: what is none of these is the node's own end."""
    return next((why.name.lower() for why in Why if why == reason), "node_stops")


@dataclass(frozen=True, slots=True)
class Start:
    desired: Desired
    place: str
    reload_id: str = ""
    """Not to serve before the reload is decided; empty for one that serves when it is ready."""


@dataclass(frozen=True, slots=True)
class Changes:
    start: tuple[Start, ...] = ()
    stop: tuple[tuple[str, Why], ...] = ()
    adopt: tuple[Desired, ...] = ()
    """Same process, other policy or limits."""
    release: tuple[str, ...] = ()
    """Replicas that held the new model and serve from now on."""
    tight: tuple[str, ...] = ()
    """Places that turned out to have no room for two."""


def desired_places(
    specs: Iterable[PoolSpec],
    *,
    node_id: str,
    gpus: tuple[Gpu, ...],
    gpu_problem: str,
    profile: str,
    reloads: Mapping[str, PoolReload] | None = None,
    drained: Collection[str] = (),
    tight: Mapping[str, str] | None = None,
) -> dict[str, Place]:
    """Places by name, in the order of pools and numbers. A replica id that is no name is left out. `reloads` by pool;
    `drained` pools have no replicas; `tight`: the reload in which a place was found to have no room for two."""
    places: dict[str, Place] = {}
    for spec in sorted(specs, key=lambda spec: spec.id):
        if (spec.nodes and node_id not in spec.nodes) or spec.id in drained:
            continue
        mask = mask_of(spec.devices, gpus=gpus, gpu_problem=gpu_problem, profile=profile)
        refusal = mask.reason if isinstance(mask, DeviceRefusal) else ""
        device = mask if isinstance(mask, DeviceMask) else DeviceMask("cpu" if spec.devices == "cpu" else "none")
        reload = (reloads or {}).get(spec.id)
        for name in place_names(spec, node_id):
            place = Place(Desired(name, spec, device, refusal))
            places[name] = _with_reload(place, reload, (tight or {}).get(name, ""))
    return places


def place_names(spec: PoolSpec, node_id: str) -> list[str]:
    """Of the pool's places on a node that serves it."""
    names = (f"{spec.id}-{node_id}-{number}" for number in range(1, spec.replicas + 1))
    return [name for name in names if is_name(name)]


def _with_reload(place: Place, reload: PoolReload | None, tight: str) -> Place:
    spec = place.now.spec
    if reload is None or reload.state is not ReloadState.UNDERWAY or spec.model != reload.old_model_ref:
        return place
    coming = replace(place.now, spec=with_model(spec, reload.new_model_ref))
    return replace(place, reload_id=reload.id, coming=coming, tight=tight == reload.id or len(place.ids) < 2)


def with_model(spec: PoolSpec, model_ref: str) -> PoolSpec:
    """The same pool with another model. A checksum is that of one file, and is not carried over."""
    provisioning = spec.provisioning
    model = msgspec.structs.replace(provisioning.model, checksum="")
    return msgspec.structs.replace(
        spec, model=model_ref, provisioning=msgspec.structs.replace(provisioning, model=model)
    )


def changes(present: Sequence[Present], places: Mapping[str, Place]) -> Changes:
    by_place: dict[str, list[Present]] = {name: [] for name in places}
    stop: list[tuple[str, Why]] = []
    for each in present:
        if each.place in by_place:
            by_place[each.place].append(each)
        elif not each.leaving:
            stop.append((each.desired.replica_id, Why.UNWANTED))
    found = [_of_place(place, by_place[name]) for name, place in places.items()]
    return Changes(
        start=tuple(start for each in found for start in each.start),
        stop=(*stop, *(left for each in found for left in each.stop)),
        adopt=tuple(desired for each in found for desired in each.adopt),
        release=tuple(replica_id for each in found for replica_id in each.release),
        tight=tuple(name for each in found for name in each.tight),
    )


def _of_place(place: Place, here: Sequence[Present]) -> Changes:
    staying = [each for each in here if not each.leaving]
    serving = next((each for each in staying if each.desired.same_process(place.now)), None)
    if place.coming is None:
        return _settled(place, here, staying, serving)
    coming = next(
        (
            each
            for each in staying
            if each is not serving and each.reload_id == place.reload_id and each.desired.same_process(place.coming)
        ),
        None,
    )
    stop = [(each.desired.replica_id, Why.CHANGED) for each in staying if each not in (serving, coming)]
    start: list[Start] = []
    full = coming is not None and coming.no_room and serving is not None
    if full:
        assert coming is not None
        stop.append((coming.desired.replica_id, Why.NO_ROOM))
    elif place.tight and serving is not None:
        stop.append((serving.desired.replica_id, Why.NO_ROOM))
    elif place.tight:
        if not here:
            start.append(_beside(place, place.name))
    elif serving is None:
        if not here:
            start.append(Start(place.now, place.name))
    elif coming is None and serving.settled and (free := _free_id(place, here)):
        start.append(_beside(place, free))
    return Changes(
        start=tuple(start),
        stop=tuple(stop),
        adopt=_adopted(place, serving) if not (place.tight or full) else (),
        tight=(place.name,) if full else (),
    )


def _settled(place: Place, here: Sequence[Present], staying: Sequence[Present], serving: Present | None) -> Changes:
    """No reload is under way, or the specification has the new model already."""
    others = tuple(each for each in staying if each is not serving)
    if serving is None:
        stop = tuple((each.desired.replica_id, Why.GIVEN_UP if each.reload_id else Why.CHANGED) for each in others)
        return Changes(stop=stop, start=() if here else (Start(place.now, place.name),))
    stop = tuple(
        (each.desired.replica_id, Why.GIVEN_UP if each.reload_id and not serving.reload_id else Why.REPLACED)
        for each in others
    )
    return Changes(
        stop=stop,
        adopt=_adopted(place, serving),
        release=(serving.desired.replica_id,) if serving.reload_id else (),
    )


def _beside(place: Place, replica_id: str) -> Start:
    assert place.coming is not None
    return Start(replace(place.coming, replica_id=replica_id), place.name, place.reload_id)


def _free_id(place: Place, here: Sequence[Present]) -> str:
    taken = {each.desired.replica_id for each in here}
    return next((each for each in place.ids if each not in taken), "")


def _adopted(place: Place, serving: Present | None) -> tuple[Desired, ...]:
    if serving is None:
        return ()
    wanted = replace(place.now, replica_id=serving.desired.replica_id)
    return (wanted,) if wanted != serving.desired else ()


def _process_part(spec: PoolSpec) -> PoolSpec:
    return msgspec.structs.replace(spec, **_NO_PART_OF_A_PROCESS)
