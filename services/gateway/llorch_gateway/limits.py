"""What one token may use of this process: requests per second, and streams open at once.

Counted by the token's name, so that a token file read again does not begin anew. Who has no limits is not counted.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from llorch_gateway.core.rate import Bucket
from llorch_shared.auth import Identity
from llorch_shared.errors import PolicyLabel, Refused
from llorch_shared.metrics import Metrics

ACCOUNTS_MAX: Final = 16_384
"""Beyond it the one that asked longest ago begins anew."""
STREAM_RETRY_MS: Final = 1_000
"""A stream ends when it ends; its reader looks again after a second."""


class StreamQuota:
    """Streams open now, at most `most`."""

    __slots__ = ("_refused", "most", "now_open")

    def __init__(self, most: int, refused: Callable[[], None]) -> None:
        self.most = most
        self.now_open = 0
        self._refused: Final = refused

    def take(self) -> None:
        """Raises Refused when all are open. Who took one gives it back."""
        if self.now_open >= self.most:
            self._refused()
            raise Refused(
                f"this token has {self.now_open} streams open here, and may have {self.most}",
                policy_label=PolicyLabel.STREAM_LIMIT,
                retry_after_ms=STREAM_RETRY_MS,
            )
        self.now_open += 1

    def give_back(self) -> None:
        self.now_open -= 1


class Limits:
    """`clock` is monotonic, seconds."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._clock: Final = clock
        self._refused: Final = metrics.counter("requests_limited_total")
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()
        self._quotas: OrderedDict[str, StreamQuota] = OrderedDict()

    def take(self, identity: Identity) -> None:
        """Count one request. Raises Refused with the time at which the next may come."""
        if identity.requests_per_s is None:
            return
        wait_s = self._bucket(identity.name, identity.requests_per_s, identity.burst).take(self._clock())
        if wait_s:
            self._refused.labels(PolicyLabel.RATE_LIMIT).inc()
            raise Refused(
                f"this token may send {identity.requests_per_s:g} requests per second",
                policy_label=PolicyLabel.RATE_LIMIT,
                retry_after_ms=int(wait_s * 1000) + 1,
            )

    def streams(self, identity: Identity) -> StreamQuota | None:
        """None where there is no limit."""
        if identity.streams_max is None:
            return None
        quota = self._quotas.get(identity.name)
        if quota is None:
            self._forget_idle()
            quota = self._quotas[identity.name] = StreamQuota(identity.streams_max, self._count_stream_refusal)
        quota.most = identity.streams_max
        return quota

    def _bucket(self, name: str, per_s: float, burst: int) -> Bucket:
        bucket = self._buckets.get(name)
        if bucket is None or (bucket.per_s, bucket.burst) != (per_s, burst):
            bucket = self._buckets[name] = Bucket(per_s, burst)
        self._buckets.move_to_end(name)
        if len(self._buckets) > ACCOUNTS_MAX:
            self._buckets.popitem(last=False)
        return bucket

    def _forget_idle(self) -> None:
        """Quotas with streams open are as many as streams, which have a bound of their own."""
        if len(self._quotas) >= ACCOUNTS_MAX:
            for name in [name for name, quota in self._quotas.items() if not quota.now_open]:
                del self._quotas[name]

    def _count_stream_refusal(self) -> None:
        self._refused.labels(PolicyLabel.STREAM_LIMIT).inc()
