"""A bucket held in memory: a snapshot plus the server's republished changes, with no consumer to go blind.

Subscribed first, read second; of two versions of a key the higher sequence wins, so the order of arrival does not
matter. After a reconnect the snapshot is read again. Cost: O(keys) per snapshot, O(1) per change.

A value that a newer release wrote is passed over. In the registry its key then counts as absent, for what is told of an
earlier moment is no longer so; but somebody is there (`is_newer`), which whoever would take the key must ask. What was
wanted before goes on being wanted: nobody stops engines because a specification cannot be read.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Literal, NamedTuple

from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus, Message, Subscription
from llorch_shared.metrics import Metrics
from llorch_shared.wire.version import Kind, is_newer

log = logging.getLogger(__name__)

Changed = Callable[[str, bytes | None], None]
"""(key, value), value None when the key expired or was deleted. Runs in the bus reader: must not block."""


class _Bucket(NamedTuple):
    kind: Kind
    stream: str
    live: str
    subject: Callable[[str], str]
    key: Callable[[str], str]


_BUCKETS: Final = {
    "REG": _Bucket(Kind.REGISTRY, streams.REG, subjects.ALL_REGISTRY_LIVE, subjects.registry, subjects.registry_key),
    "SPEC": _Bucket(Kind.SPEC, streams.SPEC, subjects.ALL_SPEC_LIVE, subjects.spec, subjects.spec_key),
    "CAT": _Bucket(Kind.SPEC, streams.CATALOG, subjects.ALL_CATALOG_LIVE, subjects.catalog, subjects.catalog_key),
}


class LiveTable:
    """One bucket as a dict of raw values, following the server."""

    def __init__(
        self, bus: Bus, *, bucket: Literal["REG", "SPEC", "CAT"], changed: Changed, metrics: Metrics | None = None
    ) -> None:
        self._bus: Final = bus
        of = _BUCKETS[bucket]
        self._kind: Final = of.kind
        self._ignored: Final = metrics.counter("messages_ignored_total").labels(self._kind) if metrics else None
        self._stream: Final = of.stream
        self._filter: Final = of.subject(">")
        self._live: Final = of.live
        self._subject: Final = of.subject
        self._key: Final = of.key
        self._changed: Final = changed
        self._values: dict[str, bytes] = {}
        self._seqs: dict[str, int] = {}
        self._newer: set[str] = set()
        self._subscription: Subscription | None = None

    @property
    def values(self) -> Mapping[str, bytes]:
        return self._values

    @property
    def known(self) -> Iterable[str]:
        """Every key that was ever seen, removed ones included."""
        return self._seqs

    def seq(self, key: str) -> int:
        """Sequence of the newest version seen, markers included; what a compare-and-set expects. 0 if never seen."""
        return self._seqs.get(key, 0)

    def is_newer(self, key: str) -> bool:
        """Whether its present value was written by a newer release."""
        return key in self._newer

    async def start(self) -> None:
        """Raises BusError; may be called again then."""
        if self._subscription is None:
            self._subscription = await self._bus.subscribe(self._live, self._apply)
            self._bus.on_reconnect(self.refresh)
        await self.refresh()

    async def refresh(self) -> None:
        """Read the whole bucket again; keys that are gone without a marker are reported as deleted. What is read may be
        of a copy that lags behind, so each of these is asked for by itself."""
        state = await self._bus.stream_state(self._stream)
        messages = await self._bus.snapshot(self._stream, self._filter)
        present = {self._key(message.subject) for message in messages}
        for message in messages:
            self._apply(message)
        for key in [key for key in self._values if key not in present and self._seqs[key] <= state.last_seq]:
            seq = self._seqs[key]
            found = await self._bus.last(self._stream, self._subject(key))
            if found is not None:
                self._apply(found)
            elif self._values.get(key) is not None and self._seqs[key] == seq:
                del self._values[key]
                self._changed(key, None)

    def _apply(self, message: Message) -> None:
        key = self._key(message.subject)
        if message.seq <= self._seqs.get(key, 0):
            return
        self._seqs[key] = message.seq
        newer = self._is_newer(key, message)
        if message.deleted or (newer and self._kind is Kind.REGISTRY):
            if self._values.pop(key, None) is not None:
                self._changed(key, None)
        elif not newer:
            self._values[key] = message.data
            self._changed(key, message.data)

    def _is_newer(self, key: str, message: Message) -> bool:
        """Said once per key, not at each renewal."""
        if message.deleted or not is_newer(self._kind, message.headers):
            self._newer.discard(key)
            return False
        if self._ignored is not None:
            self._ignored.inc()
        if key not in self._newer:
            log.warning("%s is passed over: a newer release wrote it", key)
        self._newer.add(key)
        return True

    async def close(self) -> None:
        if self._subscription is not None:
            await self._subscription.close()
