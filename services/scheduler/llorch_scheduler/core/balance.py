"""Which shards a scheduler process takes and gives back, so that all that live decide for about as many.

Every process plans for itself from the same facts: who lives, which shards have pools, who holds which. Each aims at
ceil(shards / living). A free shard is for those who hold less; one that stays free for `PATIENCE_MS` is for anybody,
so no shard waits for a process that cannot take it. Who holds more gives one back when the same processes have shared
the same shards for a while, and the next one when somebody has taken it. One that nobody took doubles that while, so
nothing flaps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

PATIENCE_MS: Final = 2_000
STEADY_MS: Final = 1_000
STEADY_MAX_MS: Final = 60_000
GIVING_MAX_MS: Final = 5_000
"""One that is still ours by then was not given back: handing over takes at most two seconds."""


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
        self._crowd: tuple[frozenset[str], frozenset[int]] | None = None
        self._since_ms = 0
        """Since when the same processes share the same shards and leave none."""
        self._free_since_ms: dict[int, int] = {}
        self._steady_ms = STEADY_MS
        self._given: tuple[int, int] | None = None
        """(shard, when) that somebody else is to take."""

    def plan(self, facts: Facts, at_ms: int) -> Plan:
        if (facts.living, facts.wanted) != self._crowd:
            self._crowd, self._since_ms, self._given = (facts.living, facts.wanted), at_ms, None
        free = [shard for shard in self._in_turn(facts) if shard not in facts.mine and self._is_free(facts, shard)]
        self._free_since_ms = {shard: self._free_since_ms.get(shard, at_ms) for shard in free}
        room = max(0, share(facts) - len(facts.mine))
        left_over = [shard for shard in free[room:] if at_ms - self._free_since_ms[shard] >= PATIENCE_MS]
        if left_over:
            self._since_ms = at_ms
        self._see_what_became(facts, left_over, at_ms)
        return Plan(take=(*free[:room], *left_over), give=self._too_many(facts, at_ms))

    def _is_free(self, facts: Facts, shard: int) -> bool:
        """What is held under my name and not decided for is mine to take again."""
        return facts.holders.get(shard, "") in ("", self._me)

    def _in_turn(self, facts: Facts) -> list[int]:
        """Each process begins at another shard, so that those who start together do not want the same ones."""
        shards = sorted(facts.wanted)
        begin = sorted(facts.living | {self._me}).index(self._me) * share(facts)
        return shards[begin:] + shards[:begin]

    def _see_what_became(self, facts: Facts, left_over: list[int], at_ms: int) -> None:
        """Of the shard that was given back last."""
        if self._given is None:
            return
        shard, given_ms = self._given
        if not self._is_free(facts, shard):
            self._given, self._steady_ms = None, STEADY_MS
        elif shard in left_over or (shard in facts.mine and at_ms - given_ms >= GIVING_MAX_MS):
            self._given, self._since_ms = None, at_ms
            self._steady_ms = min(STEADY_MAX_MS, 2 * self._steady_ms)

    def _too_many(self, facts: Facts, at_ms: int) -> int | None:
        if self._given or len(facts.mine) <= share(facts) or at_ms - self._since_ms < self._steady_ms:
            return None
        shard = max(facts.mine)
        self._given = (shard, at_ms)
        return shard


def share(facts: Facts) -> int:
    """How many shards one process aims at: an equal part, rounded up."""
    return -(-len(facts.wanted) // max(1, len(facts.living)))
