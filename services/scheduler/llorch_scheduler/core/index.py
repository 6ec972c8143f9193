"""The replicas of one pool, kept so that the best free one is found without looking at all of them.

Ready replicas of equal abilities are one `Kind`; those of a kind that were measured about equally fast are `Peers`.
Peers keep their free replicas in a heap in the order of OC-CORE-1017: most free VRAM, fewest taken slots, least id.
Heaps are lazy: a replica that changed gets a new entry, and its old one is thrown away when it comes up, or when more
than half of the entries are old.

A change of a replica costs O(log replicas); a question costs O(kinds and peers).
"""

from collections import Counter
from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from typing import Final

from llorch_scheduler.core.peers import Abilities, Entry, Kind, Peers, Speed, Standing, abilities_of, speed_of
from llorch_scheduler.core.replica import Replica
from llorch_scheduler.core.replica_sets import SetKey
from llorch_shared.wire.registry import ReplicaRecord, ReplicaState

_COMPACT_MIN: Final = 32
_DRAINING: Final = ReplicaState.DRAINING
RETURNS: Final = frozenset({ReplicaState.STARTING, ReplicaState.TESTING, ReplicaState.BACKOFF})
"""States from which a replica comes back with the engine it had."""


class PoolIndex:
    """Told of every change by the replicas themselves."""

    def __init__(self) -> None:
        self.kinds: Final[dict[Abilities, Kind]] = {}
        self.replicas: Final[dict[str, Replica]] = {}
        self.returning: Final[Counter[SetKey]] = Counter()
        """Replicas that are not ready and come back with the engine they had, by version."""
        self.ready = 0
        self.draining = 0
        self.held = 0
        self.version = 0
        """Changes with every replica that becomes ready, stops being so, or changes its abilities."""
        self._standing: Final[dict[str, Standing]] = {}
        self._stamp = 0

    def add(self, replica: Replica) -> None:
        self.replicas[replica.replica_id] = replica
        self._standing[replica.replica_id] = Standing(replica)

    def remove(self, replica: Replica) -> None:
        """One that was lost and holds nothing any more."""
        self.reported(replica)
        del self._standing[replica.replica_id]
        del self.replicas[replica.replica_id]

    def reported(self, replica: Replica) -> None:
        standing, record = self._standing[replica.replica_id], replica.record
        abilities = abilities_of(record) if record is not None and replica.ready else None
        speed = speed_of(record) if record is not None and replica.ready else None
        if standing.kind is None or standing.peers is None:
            if abilities is not None and speed is not None:
                self._join(standing, abilities, speed)
        elif abilities != standing.kind.abilities or speed is None:
            self._leave(standing)
            if abilities is not None and speed is not None:
                self._join(standing, abilities, speed)
        elif speed != standing.peers.speed:
            kind = standing.kind
            self._part(standing)
            self._accompany(standing, kind, speed)
        self._await(standing, record)
        draining = record is not None and record.state is _DRAINING
        self.draining += draining - standing.draining
        standing.draining = draining
        self.moved(replica)

    def moved(self, replica: Replica) -> None:
        standing = self._standing[replica.replica_id]
        held = len(replica.held)
        taken = held + len(replica.strangers)
        total = replica.slots_total
        free = total - taken if total > taken else 0
        self.held += held - standing.held
        standing.held = held
        if free != standing.slots_free or total != standing.slots_total:
            self._count(standing, total, free)
        if free and standing.peers is not None:
            self._offer(standing, standing.peers, replica, taken)
        elif standing.entry is not None:
            self._withdraw(standing)

    def kind_of(self, replica: Replica) -> Kind | None:
        """None when it is not ready."""
        return self._standing[replica.replica_id].kind

    def entry(self, replica_id: str) -> Entry | None:
        """Of a replica with a free slot; None for any other."""
        standing = self._standing.get(replica_id)
        return standing.entry if standing is not None else None

    def best(self, peers: Peers) -> Entry | None:
        """The free replica that goes first. O(log replicas), amortised."""
        bests = self.bests((peers,))
        return bests[0] if bests else None

    def bests(self, several: Iterable[Peers]) -> list[Entry]:
        """The free replica that goes first, of each of them that has one."""
        found: list[Entry] = []
        for peers in several:
            heap = peers.heap
            while heap:
                first = heap[0]
                if first[4].stamp == first[3]:
                    found.append(first)
                    break
                heappop(heap)
        return found

    def room_mb(self, peers: Peers) -> int:
        """Free VRAM of the roomiest free replica."""
        best = self.best(peers)
        return -best[0] if best is not None else 0

    def second(self, peers: Peers) -> Entry | None:
        """The one that would go first if the best were not there."""
        first, heap = self.best(peers), peers.heap
        if first is None or peers.free < 2:
            return None
        next_best = heap[2] if len(heap) > 2 and heap[2] < heap[1] else heap[1]
        if next_best[4].stamp == next_best[3]:
            return next_best
        heappop(heap)
        runner_up = self.best(peers)
        heappush(heap, first)
        return runner_up

    def _join(self, standing: Standing, abilities: Abilities, speed: Speed) -> None:
        kind = self.kinds.get(abilities)
        if kind is None:
            kind = self.kinds[abilities] = Kind(abilities)
        kind.size += 1
        self.ready += 1
        self.version += 1
        standing.kind, standing.version = kind, abilities.version
        self._accompany(standing, kind, speed)

    def _leave(self, standing: Standing) -> None:
        kind = standing.kind
        assert kind is not None
        self._part(standing)
        self._count(standing, 0, 0)
        standing.kind = None
        kind.size -= 1
        self.ready -= 1
        self.version += 1
        if kind.size == 0:
            del self.kinds[kind.abilities]

    def _count(self, standing: Standing, total: int, free: int) -> None:
        kind = standing.kind
        if kind is not None:
            more, more_free, slots = total - standing.slots_total, free - standing.slots_free, kind.slots
            kind.slots_free += more_free
            standing.slots_free = free
            if slots is not None:
                slots.free += more_free
            if more:
                kind.slots_total += more
                standing.slots_total = total
                if slots is not None:
                    slots.total += more

    def _accompany(self, standing: Standing, kind: Kind, speed: Speed) -> None:
        peers = kind.peers.get(speed)
        if peers is None:
            measured = all(speed)
            first_ms, token_ms = (speed.first_token_ms, 1_000 / speed.tokens_per_s) if measured else (0.0, 0.0)
            peers = kind.peers[speed] = Peers(speed, first_ms, token_ms)
        peers.size += 1
        standing.peers = peers

    def _part(self, standing: Standing) -> None:
        kind, peers = standing.kind, standing.peers
        assert kind is not None
        assert peers is not None
        self._withdraw(standing)
        standing.peers = None
        peers.size -= 1
        if peers.size == 0:
            del kind.peers[peers.speed]

    def _await(self, standing: Standing, record: ReplicaRecord | None) -> None:
        """Count it for the version it will have again."""
        version = standing.version
        if record is None or version is None or record.state not in RETURNS:
            returns = None
        else:
            returns = version if record.engine_version in ("", version.engine_version) else None
        if returns == standing.returns:
            return
        self.version += 1
        if standing.returns is not None:
            self.returning[standing.returns] -= 1
            if not self.returning[standing.returns]:
                del self.returning[standing.returns]
        if returns is not None:
            self.returning[returns] += 1
        standing.returns = returns

    def _offer(self, standing: Standing, peers: Peers, replica: Replica, taken: int) -> None:
        vram, entry = -replica.free_vram_mb, standing.entry
        if entry is None:
            self._free(standing, 1)
        elif entry[0] == vram and entry[1] == taken:
            return
        self._stamp += 1
        standing.stamp = self._stamp
        standing.entry = entry = (vram, taken, replica.replica_id, self._stamp, standing)
        heappush(peers.heap, entry)
        if len(peers.heap) > 2 * peers.free + _COMPACT_MIN:
            peers.heap = [entry for entry in peers.heap if entry[4].stamp == entry[3]]
            heapify(peers.heap)

    def _withdraw(self, standing: Standing) -> None:
        if standing.entry is not None:
            standing.entry, standing.stamp = None, 0
            self._free(standing, -1)

    def _free(self, standing: Standing, change: int) -> None:
        kind, peers = standing.kind, standing.peers
        assert kind is not None
        assert peers is not None
        kind.free += change
        peers.free += change
        if peers.free:
            kind.open[peers.speed] = peers
        else:
            del kind.open[peers.speed]
