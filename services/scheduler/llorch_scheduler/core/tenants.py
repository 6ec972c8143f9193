"""The tenants of one pool: what each may use and uses, which of their flows wait for a quota, and when to look again.

A tenant is known while it has flows, and afterwards while its meters still tell something.
"""

from heapq import heapify, heappop, heappush
from math import inf
from typing import Final

from llorch_scheduler.core.flow import Flow
from llorch_scheduler.core.quota import UNTIL_END, TenantUse
from llorch_shared.wire.policy import FairnessSpec, TenantLimits

_COMPACT_MIN: Final = 64


class Tenants:
    __slots__ = ("_default", "_limits", "_quiet", "_uses", "_wakes", "next_ms")

    def __init__(self) -> None:
        self._default = FairnessSpec().default
        self._limits: dict[str, TenantLimits] = {}
        self._uses: Final[dict[str, TenantUse]] = {}
        self._wakes: list[tuple[int, str, str, int, Flow]] = []
        """(time, tenant, class, serial, flow) of flows that wait for a rate."""
        self._quiet: list[tuple[int, str]] = []
        """(time, tenant) from when on its meters tell nothing."""
        self.next_ms: float = inf
        """Before this `woken` has nothing to do."""

    def __len__(self) -> int:
        return len(self._uses)

    def configure(self, fairness: FairnessSpec) -> None:
        self._default = fairness.default
        self._limits = {each.id: each for each in reversed(fairness.tenants)}
        for use in self._uses.values():
            use.limit(self.limits_of(use.tenant))

    def limits_of(self, tenant: str) -> TenantLimits:
        return self._limits.get(tenant) or self._default

    def use_of(self, tenant: str) -> TenantUse:
        """For one more flow of the tenant."""
        use = self._uses.get(tenant)
        if use is None:
            use = self._uses[tenant] = TenantUse(tenant, self.limits_of(tenant))
        use.flows += 1
        return use

    def flow_forgotten(self, use: TenantUse, at_ms: int) -> None:
        use.flows -= 1
        self._forget(use, at_ms)

    def wait(self, flow: Flow) -> None:
        """A flow has been throttled: see that it is looked at again."""
        if flow.wake_ms == UNTIL_END:
            flow.use.waiting.append(flow)
            return
        self.next_ms = min(self.next_ms, flow.wake_ms)
        heappush(self._wakes, (flow.wake_ms, flow.tenant, flow.priority, flow.serial, flow))
        if len(self._wakes) > 4 * len(self._uses) + _COMPACT_MIN:
            standing = {id(entry[4]): entry for entry in self._wakes if _still_waits(entry)}
            self._wakes = list(standing.values())
            heapify(self._wakes)

    def woken(self, at_ms: int) -> list[Flow]:
        """The flows whose time has come. They are told once."""
        flows: list[Flow] = []
        while self._wakes and self._wakes[0][0] <= at_ms:
            entry = heappop(self._wakes)
            if _still_waits(entry):
                flows.append(entry[4])
        while self._quiet and self._quiet[0][0] <= at_ms:
            use = self._uses[heappop(self._quiet)[1]]
            use.remembered = False
            self._forget(use, at_ms)
        self.next_ms = min((heap[0][0] for heap in (self._wakes, self._quiet) if heap), default=inf)
        return flows

    def wake_ms(self) -> int | None:
        """When the first of them is."""
        while self._wakes and not _still_waits(self._wakes[0]):
            heappop(self._wakes)
        return self._wakes[0][0] if self._wakes else None

    def _forget(self, use: TenantUse, at_ms: int) -> None:
        if use.flows or use.remembered:
            return
        quiet_ms = use.quiet_ms(at_ms)
        if quiet_ms > at_ms:
            use.remembered = True
            self.next_ms = min(self.next_ms, quiet_ms)
            heappush(self._quiet, (quiet_ms, use.tenant))
        else:
            del self._uses[use.tenant]


def _still_waits(entry: tuple[int, str, str, int, Flow]) -> bool:
    return entry[4].throttled and entry[4].wake_ms == entry[0]
