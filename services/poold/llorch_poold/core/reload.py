"""When a reload is decided: all or nothing over every node that serves the pool. Pure, with the time as an argument.

Each node brings up a replica with the new model at each of the pool's places and holds it back. When all of them are
ready the specification gets the new model, in one write: that is the moment at which the pool changes over. When one
fails, or time is up, the specification stays as it is, and the held ones go. Any node may decide, and compare-and-set
lets one of them; a node that dies meanwhile is not waited for, and one that joins is. Where the pool could not be
served before (no usable GPU, say), that the new model cannot be either decides nothing.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import msgspec

from llorch_poold.core.reconcile import place_names
from llorch_shared.wire.desired import PoolReload, ReloadState
from llorch_shared.wire.registry import ReplicaRecord, ReplicaState, Standby, StandbyState
from llorch_shared.wire.spec import PoolSpec


@dataclass(frozen=True, slots=True)
class Switch:
    """Every place holds the new model: it belongs into the specification."""


@dataclass(frozen=True, slots=True)
class Done:
    """The specification has the new model."""


@dataclass(frozen=True, slots=True)
class Failed:
    reason: str


Verdict = Switch | Done | Failed
SWITCH: Final = Switch()
DONE: Final = Done()


def verdict(
    reload: PoolReload,
    spec: PoolSpec | None,
    *,
    nodes: Iterable[str],
    replicas: Iterable[ReplicaRecord],
    drained: bool = False,
    now_ms: int,
) -> Verdict | None:
    """None while it is open. `nodes` that live, and the `replicas` of the pool."""
    if spec is None:
        return Failed("the pool was removed meanwhile")
    if spec.model == reload.new_model_ref:
        return DONE
    if drained:
        return Failed("the pool was drained meanwhile")
    if spec.model != reload.old_model_ref:
        return Failed(f"somebody else gave the pool the model {spec.model} meanwhile")
    mine = list(replicas)
    broken = Counter(each.node_id for each in mine if each.standby is None and each.state is ReplicaState.FAILED)
    held: Counter[str] = Counter()
    failed = ""
    for replica in mine:
        standby = replica.standby
        if standby is None or standby.reload_id != reload.id:
            continue
        if standby.state is StandbyState.FAILED:
            failed = f"replica {replica.replica_id}: {replica.last_error or 'no cause is known'}"
            broken[replica.node_id] -= 1
            if broken[replica.node_id] < 0:
                return Failed(failed)
        held[replica.node_id] += standby.state is not StandbyState.COMING
    serving = [node for node in nodes if not spec.nodes or node in spec.nodes]
    missing = sorted(node for node in serving if held[node] < len(place_names(spec, node)))
    if serving and not missing:
        return Failed(failed) if failed and not _any_ready(mine, reload) else SWITCH
    if now_ms - reload.requested_ms < reload.deadline_ms:
        return None
    who = f"node {', '.join(missing)}" if missing else "any node: none that serves the pool is alive"
    return Failed(f"not ready within {reload.deadline_ms} ms on {who}")


def _any_ready(replicas: Iterable[ReplicaRecord], reload: PoolReload) -> bool:
    ready = Standby(reload_id=reload.id, state=StandbyState.READY)
    return any(replica.standby == ready for replica in replicas)


def ended(reload: PoolReload, outcome: Done | Failed, now_ms: int) -> PoolReload:
    if isinstance(outcome, Failed):
        return msgspec.structs.replace(
            reload, state=ReloadState.FAILED, ended_ms=now_ms, last_error=outcome.reason[:1_000]
        )
    return msgspec.structs.replace(reload, state=ReloadState.DONE, ended_ms=now_ms, last_error="")
