"""Who decided for which shard, as the server republished it: a file beside the history, for the times of takeovers."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

import msgspec

from chaos.history import now
from llorch_shared import subjects
from llorch_shared.bus.port import Bus, Message
from llorch_shared.wire.registry import LEASE_DECODER

LEASES: Final = "leases.json"
SOON_S: Final = 30.0
"""A holder that changes later than this was not lost by that kill."""


class LeaseSeen(msgspec.Struct, frozen=True, kw_only=True):
    """A stored change of the lease of one shard. No holder: it was given back, or has expired."""

    at: float
    shard: int
    holder: str
    given_back: bool = False


class LeaseWatch:
    def __init__(self) -> None:
        self.seen: list[LeaseSeen] = []

    async def start(self, bus: Bus) -> None:
        for shard in range(subjects.SHARDS):
            await bus.subscribe(subjects.registry_live(subjects.lease_key(shard)), self._recorder(shard))

    def _recorder(self, shard: int):  # type: ignore[no-untyped-def]
        def seen(message: Message) -> None:
            holder = LEASE_DECODER.decode(message.data).holder if message.data else ""
            given_back = bool(message.data) and not holder
            self.seen.append(LeaseSeen(at=now(), shard=shard, holder=holder, given_back=given_back))

        return seen

    def write(self, folder: Path) -> None:
        (folder / LEASES).write_bytes(msgspec.json.encode(self.seen))


def read_leases(folder: Path) -> list[LeaseSeen]:
    return msgspec.json.decode((folder / LEASES).read_bytes(), type=list[LeaseSeen])


class Takeover(msgspec.Struct, frozen=True, kw_only=True):
    """Of one shard whose holder was killed. Times in seconds after the kill."""

    shard: int
    killed: float
    leased_s: float | None
    """Until another held the lease; None when that was not seen."""


def takeovers(kills: Sequence[float], seen: Sequence[LeaseSeen]) -> list[Takeover]:
    """A shard was led by the victim of the last kill before its holder changed without a word: a holder that gives back
    says so first, and one that lives goes on renewing."""
    found = []
    for shard in sorted({each.shard for each in seen}):
        mine = sorted((each for each in seen if each.shard == shard), key=lambda each: each.at)
        for before, after in pairwise(mine):
            if not before.holder or before.holder == after.holder or after.given_back:
                continue
            killed = max((at for at in kills if at < after.at), default=None)
            if killed is not None and after.at - killed < SOON_S:
                taken = next((each for each in mine if each.at >= after.at and each.holder), None)
                leased = None if taken is None else taken.at - killed
                found.append(Takeover(shard=shard, killed=killed, leased_s=leased))
    return found
