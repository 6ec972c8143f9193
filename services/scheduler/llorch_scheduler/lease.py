"""Who decides for a shard: one registry key each, taken and renewed by compare-and-set, gone when its TTL passes.

A holder trusts its lease for 0.8 of the TTL after the *start* of its last successful renewal, by its own monotonic
clock, and then stops by itself (self-fence), so a standby that waits for the key's expiry never overlaps with it.
Overlap would still be harmless: every decision is fenced by the compare-and-set on the run record.
"""

import asyncio
import logging
import time
from collections.abc import Container
from typing import Final

import msgspec

from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus, BusError, WrongSequence
from llorch_shared.live_table import LiveTable
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.registry import LEASE_DECODER, LeaseRecord
from llorch_shared.wire.version import Kind, version_headers

log = logging.getLogger(__name__)

FENCE_SHARE: Final = 0.8
RENEW_SHARE: Final = 0.25
EXPIRY_LATE_S: Final = 0.5
"""The server's expiry is up to 0.25 s late; a key unchanged for the TTL and this is dead, its marker was missed."""
NEWER_HOLDER: Final = "a newer release"
"""Holder of a lease whose record this release cannot read: it is taken, by nobody we know."""
NOT_RENEWED: Final = "the lease could not be renewed in time"
_RETRY_S: Final = 0.1


class SteppedDown(Exception):
    """This term is over: whatever was about to be written must not be."""


class Term:
    """One period in office for one shard. Ends once, for one reason. Who sees that the lease was not renewed in time
    ends it for all: some have stopped by then, so a renewal that succeeds after that must not bring it back."""

    def __init__(self, shard: int, epoch: int, seq: int, fence_at: float, *, how: str = "") -> None:
        self.shard: Final = shard
        self.epoch: Final = epoch
        self.how: Final = how
        """Why the lease could be taken: see `Lease.acquire`."""
        self.seq = seq
        self.fence_at = fence_at
        self.reason = ""
        self._ended: Final = asyncio.Event()

    @property
    def active(self) -> bool:
        if time.monotonic() >= self.fence_at:
            self.end(NOT_RENEWED)
        return not self._ended.is_set()

    def check(self) -> None:
        """Raises SteppedDown when this term is over."""
        if not self.active:
            raise SteppedDown(self.reason)

    def end(self, reason: str) -> None:
        if not self._ended.is_set():
            self.reason = reason
            self._ended.set()

    async def over(self) -> None:
        await self._ended.wait()


class Lease:
    """Of one shard. `registry` is the live registry table; its sequence of the key is what the next write must
    expect. `gone` are holders whose leases need not expire: who is not gone after all has renewed, or sees at its next
    renewal that it lost the compare-and-set."""

    def __init__(
        self,
        bus: Bus,
        registry: LiveTable,
        *,
        shard: int,
        holder: str,
        ttl_s: float,
        gone: Container[str] = frozenset(),
    ) -> None:
        self.shard: Final = shard
        self.key: Final = subjects.lease_key(shard)
        self._bus: Final = bus
        self._registry: Final = registry
        self._holder: Final = holder
        self._ttl_s: Final = ttl_s
        self._gone: Final = gone
        self._watched = (-1, 0.0)

    @property
    def holder(self) -> str:
        """Who has it; empty when it is free, or its holder is gone, or it was not renewed in its time, whatever became
        of the marker. To be asked at least every TTL: the time of a key begins when it is first seen here."""
        seq = self._registry.seq(self.key)
        if seq != self._watched[0]:
            self._watched = (seq, time.monotonic())
        data = self._registry.values.get(self.key)
        newer = self._registry.is_newer(self.key)
        if (data is None and not newer) or time.monotonic() - self._watched[1] >= self._ttl_s + EXPIRY_LATE_S:
            return ""
        holder = NEWER_HOLDER if data is None else _holder(data)
        return "" if holder in self._gone else holder

    async def acquire(self) -> Term | None:
        """One try; None while somebody has it, or the bus does not do it. The term says how it came: the holder was
        `gone` from the bus, its key `expired`, it was `given back`, it was `ours` already, or there was none
        (`new`)."""
        how = self._how
        try:
            seq = await self._free_seq()
            if seq is None:
                return None
            started = time.monotonic()
            stored = await self._store(self._holder, epoch=seq + 1, expect_seq=seq)
        except WrongSequence:
            return None
        except BusError as error:
            log.debug("the lease cannot be taken now: %s", error)
            return None
        return Term(self.shard, epoch=seq + 1, seq=stored, fence_at=started + FENCE_SHARE * self._ttl_s, how=how)

    @property
    def _how(self) -> str:
        data = self._registry.values.get(self.key)
        if data is None:
            return "expired" if self._registry.seq(self.key) else "new"
        holder = _holder(data)
        if holder in self._gone:
            return "gone"
        return {"": "given back", self._holder: "ours"}.get(holder, "expired")

    async def _free_seq(self) -> int | None:
        """The sequence to expect when the lease may be taken, None while somebody has it. Of an expired key it is asked
        for: its marker expires after a second, too, without a word, and then 0 is to be expected."""
        if self.holder not in ("", self._holder):
            return None
        seq = self._registry.seq(self.key)
        data = self._registry.values.get(self.key)
        if seq and data is not None and self._may_take(data):
            return seq
        message = await self._bus.last(streams.REG, subjects.registry(self.key))
        if message is None:
            return 0
        free = message.deleted or message.seq == seq or self._may_take(message.data)
        return message.seq if free else None

    def _may_take(self, data: bytes) -> bool:
        holder = _holder(data)
        return holder in ("", self._holder) or holder in self._gone

    async def _store(self, holder: str, *, epoch: int, expect_seq: int, timeout_s: float = 1.0) -> int:
        record = LeaseRecord(holder=holder, epoch=epoch, renewed_ms=now_ms())
        stored = await self._bus.store(
            subjects.registry(self.key),
            msgspec.json.encode(record),
            expect_seq=expect_seq,
            headers=version_headers(Kind.REGISTRY),
            ttl_s=self._ttl_s if holder else 1,
            timeout_s=timeout_s,
        )
        return stored.seq

    async def keep(self, term: Term) -> None:
        """Renew until the term ends; ends it when the lease is lost."""
        while term.active:
            await asyncio.sleep(min(RENEW_SHARE * self._ttl_s, max(0.0, term.fence_at - time.monotonic())))
            await self._renew(term)
        term.end(NOT_RENEWED)

    async def _renew(self, term: Term) -> None:
        while term.active:
            started = time.monotonic()
            left = max(0.05, term.fence_at - started)
            try:
                term.seq = await self._store(
                    self._holder, epoch=term.epoch, expect_seq=term.seq, timeout_s=min(left, self._ttl_s / 2)
                )
            except WrongSequence:
                if not await self._still_ours(term):
                    term.end("another scheduler took the shard")
                    return
            except BusError as error:
                log.warning("the lease could not be renewed, trying again: %s", error)
                await asyncio.sleep(_RETRY_S)
            else:
                if term.active:
                    term.fence_at = started + FENCE_SHARE * self._ttl_s
                return

    async def _still_ours(self, term: Term) -> bool:
        """A renewal whose ack got lost moved the sequence; a key that expired, or another holder, is a loss."""
        try:
            message = await self._bus.last(streams.REG, subjects.registry(self.key))
        except BusError:
            await asyncio.sleep(_RETRY_S)
            return True
        if message is None or message.deleted:
            return False
        record = LEASE_DECODER.decode(message.data)
        if record.holder != self._holder or record.epoch != term.epoch:
            return False
        term.seq = message.seq
        return True

    async def release(self, term: Term) -> None:
        """Leave in order: a standby takes over at once."""
        try:
            await self._store("", epoch=term.epoch, expect_seq=term.seq)
        except BusError as error:
            log.info("the lease was not given back and will expire: %s", error)


def _holder(data: bytes) -> str:
    try:
        return LEASE_DECODER.decode(data).holder
    except msgspec.DecodeError:
        return ""
