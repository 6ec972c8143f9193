"""How long a task will hold a slot of this pool, learned from those that ended.

    slot time = overhead + token · tokens           tokens = expected_tokens of the request, else
                                                             max_tokens · used

`overhead` (what a task costs besides its tokens: prefill, bus hops) and `token` are a least-squares line through the
samples (tokens_out, slot time), each sample weighing KEEP times the next, so the last 50 carry 63 % and a change of
load or model shows within dozens of tasks. `used` is the mean of tokens_out over the mean of max_tokens of the flow
(tenant and class), else of the pool. Sums of such estimates over a backlog are right even where single ones
are not; how far single ones are off is in `spread`.

A sample is the time from the decision to place a task to its final record: what the slot was not available for.
"""

from collections import OrderedDict
from typing import Final

from llorch_shared.on_time import Spread
from llorch_shared.wire.task import Priority, TaskRequest

KEEP: Final = 0.98
"""Weight of a sample against the next one."""
TOKEN_MS: Final = 20.0
"""Slot time per token until a task has ended: 50 tokens a second, a small model on a common card."""
USED: Final = 0.5
"""Part of max_tokens that is generated, until a task has ended."""
FLOWS_MAX: Final = 4_096
_FLOW_SAMPLES: Final = 4.0
"""A flow's own mean weighs as much as the pool's once so many of its tasks have ended."""

_Flow = tuple[str, Priority]


class _Usage:
    """Generated tokens against allowed ones."""

    __slots__ = ("allowed", "count", "generated")

    def __init__(self) -> None:
        self.count = self.generated = self.allowed = 0.0

    def add(self, tokens_out: int, max_tokens: int) -> None:
        self.count = KEEP * self.count + 1
        self.generated = KEEP * self.generated + tokens_out
        self.allowed = KEEP * self.allowed + max_tokens


class ServiceModel:
    """Of one pool. Every call is O(1); at most FLOWS_MAX flows are remembered, those that ended a task last."""

    __slots__ = (
        "_all", "_flows", "_n", "_x", "_xx", "_xy", "_y", "mean_ms", "overhead_ms", "spread", "token_ms", "used_by_all",
    )  # fmt: skip

    def __init__(self) -> None:
        self.mean_ms = 0.0
        """Slot time of a task on average; 0 until the first one ended."""
        self.overhead_ms = 0.0
        self.token_ms = TOKEN_MS
        self.spread: Final = Spread()
        """Real over expected slot time."""
        self._all: Final = _Usage()
        self._flows: Final[OrderedDict[_Flow, _Usage]] = OrderedDict()
        self.used_by_all = USED
        """Expected part of max_tokens that is generated, over all flows."""
        self._n = self._x = self._y = self._xx = self._xy = 0.0

    def used(self, tenant: str, priority: Priority) -> float:
        """Expected part of max_tokens that is generated."""
        whole = self.used_by_all
        flow = self._flows.get((tenant, priority))
        if flow is None or not flow.allowed:
            return whole
        return (flow.generated / flow.allowed * flow.count + whole * _FLOW_SAMPLES) / (flow.count + _FLOW_SAMPLES)

    def expected_tokens(self, request: TaskRequest, tenant: str) -> float:
        if request.expected_tokens is not None:
            return float(min(request.expected_tokens, request.max_tokens))
        return request.max_tokens * self.used(tenant, request.priority)

    def expected_ms(self, request: TaskRequest, tenant: str) -> float:
        """Expected slot time, at least 1 ms."""
        expected_ms = self.overhead_ms + self.token_ms * self.expected_tokens(request, tenant)
        return expected_ms if expected_ms > 1.0 else 1.0

    def add(
        self,
        *,
        tenant: str,
        priority: Priority,
        max_tokens: int,
        tokens_out: int,
        slot_ms: float,
        expected_ms: float,
        complete: bool = True,
    ) -> None:
        """A task has left its slot. `expected_ms` is what was expected of it before. Not `complete` (cancelled,
        failed): it tells about time per token, but not how many tokens such tasks take."""
        slot_ms = slot_ms if slot_ms > 1.0 else 1.0
        self._fit(float(tokens_out) if tokens_out > 0 else 0.0, slot_ms)
        if not complete:
            return
        if expected_ms > 0:
            self.spread.add(slot_ms / expected_ms)
        if max_tokens > 0:
            self._all.add(tokens_out, max_tokens)
            self.used_by_all = self._all.generated / self._all.allowed
            self._usage_of(tenant, priority).add(tokens_out, max_tokens)

    def _usage_of(self, tenant: str, priority: Priority) -> _Usage:
        """Of the flow that ended a task last."""
        flows, key = self._flows, (tenant, priority)
        flow = flows.get(key)
        if flow is None:
            flow = flows[key] = _Usage()
            if len(flows) > FLOWS_MAX:
                flows.popitem(last=False)
        else:
            flows.move_to_end(key)
        return flow

    def _fit(self, tokens: float, slot_ms: float) -> None:
        self._n = n = KEEP * self._n + 1
        self._x = x = KEEP * self._x + tokens
        self._y = y = KEEP * self._y + slot_ms
        self._xx = xx = KEEP * self._xx + tokens * tokens
        self._xy = xy = KEEP * self._xy + tokens * slot_ms
        mean_x, mean_ms = x / n, y / n
        most = mean_ms / mean_x if mean_x else 0.0
        variance = xx / n - mean_x * mean_x
        slope = (xy / n - mean_x * mean_ms) / variance if variance > 1e-3 * mean_x * mean_x else most
        token_ms = slope if slope > 0.0 else 0.0
        self.token_ms = token_ms = token_ms if token_ms < most else most
        overhead_ms = mean_ms - token_ms * mean_x
        self.mean_ms, self.overhead_ms = mean_ms, overhead_ms if overhead_ms > 0.0 else 0.0
