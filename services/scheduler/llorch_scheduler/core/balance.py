"""Which shards a scheduler process takes and gives back, so that all that live decide for about as many.

Every process plans for itself from the same facts: who lives, which shards have pools, who holds which. Each aims at
ceil(shards / living). A free shard is for those who hold less; one that stays free for `PATIENCE_MS` is for anybody,
so no shard waits for a process that cannot take it. Who holds more than that gives one back, and the next one only
after the facts stayed the same for a while. One that nobody took doubles that time, so nothing flaps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

PATIENCE_MS: Final = 2_000
STEADY_MS: Final = 1_000
STEADY_MAX_MS: Final = 60_000


@dataclass(frozen=True, slots=True)
class Facts:
    """As the registry tells them. `holders` names the shards that somebody holds, `mine` those I decide for."""

    living: frozenset[str]
    wanted: frozenset[int]
    holders: Mapping[int, str]
    mine: frozenset[int]


@dataclass(frozen=True, slots=True)
class Plan:
    take: tuple[int, ...] = ()
    give: int | None = None


class Balance:
    """Of one process. `plan` is asked again whenever a fact may have changed, and every few hundred milliseconds."""

    def __init__(self, me: str) -> None:
        self._me: Final = me
        self._facts: Facts | None = None
        self._since_ms = 0
        self._free_since_ms: dict[int, int] = {}
        self._steady_ms = STEADY_MS
        self._given: int | None = None

    def plan(self, facts: Facts, at_ms: int) -> Plan:
        if facts != self._facts:
            self._facts, self._since_ms = facts, at_ms
        free = [shard for shard in self._in_turn(facts) if shard not in facts.mine and self._is_free(facts, shard)]
        self._free_since_ms = {shard: self._free_since_ms.get(shard, at_ms) for shard in free}
        self._see_what_became(facts)
        room = max(0, share(facts) - len(facts.mine))
        left_over = [shard for shard in free[room:] if at_ms - self._free_since_ms[shard] >= PATIENCE_MS]
        if self._given in left_over:
            self._given, self._steady_ms = None, min(STEADY_MAX_MS, 2 * self._steady_ms)
        return Plan(take=(*free[:room], *left_over), give=self._too_many(facts, at_ms))

    def _is_free(self, facts: Facts, shard: int) -> bool:
        """What is held under my name and not decided for is mine to take again."""
        return facts.holders.get(shard, "") in ("", self._me)

    def _in_turn(self, facts: Facts) -> list[int]:
        """Each process begins at another shard, so that those who start together do not want the same ones."""
        shards = sorted(facts.wanted)
        begin = sorted(facts.living | {self._me}).index(self._me) * share(facts)
        return shards[begin:] + shards[:begin]

    def _see_what_became(self, facts: Facts) -> None:
        if self._given is not None and facts.holders.get(self._given, self._me) not in ("", self._me):
            self._given, self._steady_ms = None, STEADY_MS

    def _too_many(self, facts: Facts, at_ms: int) -> int | None:
        if len(facts.mine) <= share(facts) or at_ms - self._since_ms < self._steady_ms:
            return None
        self._given = max(facts.mine)
        return self._given


def share(facts: Facts) -> int:
    """How many shards one process aims at: an equal part, rounded up."""
    return -(-len(facts.wanted) // max(1, len(facts.living)))
