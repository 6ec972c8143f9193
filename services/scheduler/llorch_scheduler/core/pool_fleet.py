"""The replicas of one pool, and which of them takes a task. The rules are `placement`'s and `replica_sets`'.

A decision costs O(kinds and peers + log replicas), a change of a replica O(log replicas), see `index`.
"""

from collections.abc import Sequence
from typing import Final

from llorch_scheduler.core.affinity import Affinity, Last
from llorch_scheduler.core.decision import Decision, DecisionLog, Offers
from llorch_scheduler.core.feasibility import Feasibility, View
from llorch_scheduler.core.index import PoolIndex
from llorch_scheduler.core.job import Job
from llorch_scheduler.core.peers import Entry, Peers
from llorch_scheduler.core.placement import (
    fell_back,
    nobody,
    pinned,
    soonest,
    tie_breakers,
)
from llorch_scheduler.core.replica import Replica, kv_mb
from llorch_scheduler.core.replica_sets import ReplicaSets
from llorch_scheduler.core.shape import Shape
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import TaskRequest
from llorch_shared.wishes import on_device


class PoolFleet:
    """Told of every change by the replicas themselves. Questions change nothing, but that the stable set is settled by
    the first decision that picks a replica; where a session went is noted when the replica holds its task."""

    def __init__(self) -> None:
        self.index: Final = PoolIndex()
        self.affinity: Final = Affinity()
        self._feasibility: Final = Feasibility(self.index)
        self.slots: Final = self._feasibility.slots
        self.moved: Final = self.index.moved
        """What replicas tell, as `reported` and `held` are: see `replica.Watcher`."""

    @property
    def sets(self) -> ReplicaSets:
        return self._feasibility.sets

    @property
    def shapes_version(self) -> int:
        """See `Feasibility.shapes_version`."""
        return self._feasibility.shapes_version()

    # what replicas tell

    def reported(self, replica: Replica) -> None:
        self.index.reported(replica)

    def held(self, replica: Replica, job: Job) -> None:
        request, record = job.record.request, replica.record
        incarnation = record.incarnation if record is not None else job.record.incarnation
        if request is not None and incarnation:
            self.affinity.saw(
                job.record.tenant,
                request.session_id,
                replica.replica_id,
                incarnation,
                job.held_ms,
                task_id=job.task_id,
            )

    # what is asked

    def get(self, replica_id: str) -> Replica | None:
        return self.index.replicas.get(replica_id)

    def configure(self, spec: PoolSpec | None) -> None:
        """None: the pool is not wanted, and nothing is placed on it."""
        self._feasibility.configure(spec)
        if spec is None:
            self.affinity.forget()

    def shape_of(self, request: TaskRequest) -> Shape:
        """For a pool that is wanted."""
        return self._feasibility.shape_of(request)

    def can_take(self, shape: Shape) -> bool:
        """Whether a replica that serves this shape has a free slot. O(kinds)."""
        for kind in self._feasibility.view(shape).kinds:  # noqa: SIM110  (a generator takes five times as long)
            if kind.free:
                return True
        return False

    def can_serve(self, shape: Shape) -> bool:
        """Whether a ready replica serves this shape, with a free slot or without."""
        return bool(self._feasibility.view(shape).kinds)

    def could_take(self, shape: Shape, replica: Replica) -> bool:
        """Whether this replica serves the shape, with a free slot or without."""
        return self.index.kind_of(replica) in self._feasibility.view(shape).kinds

    def has_device(self, request: TaskRequest) -> bool:
        """Whether some replica, ready or not, runs on the device that the client requires, if any does. Also true where
        no replica is known: it may come. O(replicas) for a request with a device mask, else O(1)."""
        if request.placement is None or request.placement.require_device_mask is None:
            return True
        records = [each.record for each in self.index.replicas.values() if each.record is not None]
        return not records or bool(on_device(request, records))

    def kv_mb(self, request: TaskRequest) -> int:
        """KV memory the task takes where engines take it as tasks come, MiB; 0 where none does. O(kinds)."""
        most = 0
        for each in self.index.kinds:
            if each.kv_bytes_per_token:
                most = max(most, kv_mb(request.ctx, each.kv_bytes_per_token))
        return most

    def decide(
        self,
        request: TaskRequest,
        *,
        tenant: str,
        at_ms: int,
        expected_tokens: float | None = None,
        shape: Shape | None = None,
    ) -> Decision:
        """Pick the replica that takes the tenant's task now. `expected_tokens` will be generated; by default as many as
        the client expects or permits. `shape`: that of the request, if it is known."""
        spec = self._feasibility.spec
        assert spec is not None, "nothing is placed on a pool that is not wanted"
        view = self._feasibility.view(shape if shape is not None else self.shape_of(request))
        expected = expected_tokens if expected_tokens is not None else request.expected_tokens or request.max_tokens
        offers, removed = self._offers(view, request, expected)
        last = self.affinity.last(tenant, request.session_id, at_ms=at_ms, ttl_ms=spec.affinity.ttl_ms)
        if not offers.peers:
            reason = "all_slots_taken" if view.kinds else nobody(request)
            log = self._log(request, spec, view, removed, reason=reason)
            return Decision(replica=None, log=log, busy=bool(view.kinds))
        self.sets.settle()
        tied = soonest(offers)
        bests = self.index.bests(tied)
        warm = self._warm(last, tied, request) if last is not None else None
        entry = warm or min(bests)
        ties = tie_breakers(self.index, offers, tied, bests, entry, by_session=warm is not None)
        replica, peers = entry[4].replica, entry[4].peers
        kv_warmth = last.was_on(replica) if last is not None else None
        log = self._log(
            request,
            spec,
            view,
            removed,
            reason=ties[-1] if ties else "only_candidate",
            ties=ties,
            entry=entry,
            end_ms=peers.end_ms(expected) if peers is not None else 0,
            kv_warmth=kv_warmth,
        )
        return Decision(replica=replica, log=log, kv_warmth=kv_warmth)

    # how it is answered

    def _offers(self, view: View, request: TaskRequest, expected: float) -> tuple[Offers, list[tuple[str, int]]]:
        index = self.index
        found: list[Peers] = []
        full = short = 0
        for kind in view.kinds:
            full += kind.size - kind.free
            if not kind.free:
                continue
            per_token = kind.abilities.kv_bytes_per_token
            need_mb = kv_mb(request.ctx, per_token) if per_token else 0
            if need_mb:
                for peers in kind.open.values():
                    if index.room_mb(peers) < need_mb:
                        short += peers.free
                    else:
                        found.append(peers)
            else:
                found += kind.open.values()
        removed = list(view.removed)
        if full:
            removed.append(("slots", full))
        if short:
            removed.append(("vram", short))
        if len(index.replicas) != index.ready:
            away = (("ready", len(index.replicas) - index.ready - index.draining), ("draining", index.draining))
            removed[:0] = [each for each in away if each[1]]
        return Offers(found, [peers.first_ms + peers.token_ms * expected for peers in found]), removed

    def _warm(self, last: Last, tied: Sequence[Peers], request: TaskRequest) -> Entry | None:
        """The replica that had the session last, if it is one of those that end about as soon as any, and has room."""
        entry = self.index.entry(last.replica_id)
        if entry is None or not last.was_on(entry[4].replica):
            return None
        peers, kind = entry[4].peers, entry[4].kind
        if peers is None or kind is None or peers not in tied:
            return None
        return entry if -entry[0] >= kv_mb(request.ctx, kind.abilities.kv_bytes_per_token) else None

    def _log(
        self,
        request: TaskRequest,
        spec: PoolSpec,
        view: View,
        removed: Sequence[tuple[str, int]],
        *,
        reason: str,
        ties: tuple[str, ...] = (),
        entry: Entry | None = None,
        end_ms: float = 0,
        kv_warmth: bool | None = None,
    ) -> DecisionLog:
        wishes = request.placement is not None
        return DecisionLog(
            selected=entry[2] if entry is not None else "",
            candidates_considered=len(self.index.replicas),
            filters_applied=tuple([f"{name}:{count}" for name, count in removed]),
            tie_breakers_applied=ties,
            pinned=wishes and pinned(request),
            fallback_used=wishes and fell_back(request, spec),
            decision_reason=reason,
            replica_set=view.replica_set,
            predicted_end_ms=round(1000 * end_ms) / 1000,
            free_vram_mb=-entry[0] if entry is not None else 0,
            active_slots=entry[1] if entry is not None else 0,
            kv_warmth=kv_warmth,
        )
