"""What a reader is told while its task waits: its place, when it starts, what it waits for. Pure.

Made by the gateway for each reader from what it holds anyway. Such a frame has no id and is in no stored stream, so it
changes nothing about where a reader resumes.
"""

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from llorch_gateway.core.prospect import Prospect
from llorch_shared.wire.frames import Metrics, Narration
from llorch_shared.wire.registry import PoolLoad, ReplicaRecord, ReplicaState
from llorch_shared.wire.run import WaitsFor

_PERCENT: Final = re.compile(r"(\d{1,3}) %$")


class Notice(NamedTuple):
    """`changes` is what has to differ from the last notice for this one to be worth a frame."""

    metrics: Metrics
    narration: Narration

    @property
    def changes(self) -> tuple[object, ...]:
        told = self.metrics
        return told.queue_depth, told.queue_position, told.waits_for, told.progress_percent


def notice(
    task: str, load: PoolLoad | None, replicas: Sequence[ReplicaRecord], prospect: Prospect | None
) -> Notice | None:
    """None when a replica holds the task: it waits no more. `prospect` is of this task, where its place is known."""
    if any(task in replica.active for replica in replicas):
        return None
    waits_for, percent = _reason(load, replicas)
    position = prospect.position if prospect is not None else None
    metrics = Metrics(
        queue_depth=None if load is None else sum(load.queued.values()),
        queue_position=position,
        predicted_start_ms=prospect.start_ms if prospect is not None else None,
        waits_for=waits_for,
        progress_percent=percent,
    )
    return Notice(metrics, Narration(human=_sentence(waits_for, position, percent), action="wait"))


def _reason(load: PoolLoad | None, replicas: Sequence[ReplicaRecord]) -> tuple[WaitsFor, int | None]:
    """Of several replicas that come, the one that is furthest counts: it will take the task."""
    if any(replica.state is ReplicaState.READY for replica in replicas) or (load is not None and load.replicas_ready):
        return WaitsFor.SLOT, None
    if replicas and all(replica.refused for replica in replicas):
        return WaitsFor.TRUST, None
    fetching = [replica for replica in replicas if replica.state is ReplicaState.PROVISIONING]
    if not fetching or len(fetching) < len(replicas):
        return WaitsFor.MODEL, None
    shares = [int(found[1]) for replica in fetching if (found := _PERCENT.search(replica.progress))]
    return WaitsFor.DOWNLOAD, min(100, max(shares)) if shares else None


def _sentence(waits_for: WaitsFor, position: int | None, percent: int | None) -> str:
    match waits_for:
        case WaitsFor.DOWNLOAD:
            return "waits for a download" if percent is None else f"waits for a download: {percent} %"
        case WaitsFor.MODEL:
            return "waits for the model to load"
        case WaitsFor.TRUST:
            return "waits for a model that may be loaded: the trust policy forbids this one"
        case WaitsFor.SLOT:
            if not position:
                return "waits for a free slot"
            return f"waits behind {position} {'task' if position == 1 else 'tasks'}"
