"""One task as the simulation follows it: light, because there are many."""

from typing import Final

from llorch_scheduler.simulator.scenario import Flow
from llorch_shared.wire.task import Priority


class SimTask:
    """Times in simulated milliseconds; negative while it has not happened."""

    __slots__ = (
        "admitted_ms", "arrived_ms", "flow", "number", "output", "position", "priority", "prompt", "refusals",
        "source", "started_ms", "task_id", "tenant", "told_ms",
    )  # fmt: skip

    def __init__(
        self,
        number: int,
        flow: Flow,
        source: int,
        *,
        at_ms: float,
        prompt: int,
        output: int,
        tenant: str,
        priority: Priority,
    ) -> None:
        """`source` is the index of the flow in its scenario."""
        self.number: Final = number
        self.task_id: Final = f"00000000-0000-4000-8000-{number:012x}"
        self.flow: Final = flow
        self.source: Final = source
        self.prompt: Final = prompt
        self.output: Final = output
        self.tenant: Final = tenant
        self.priority: Final = priority
        self.arrived_ms: Final = at_ms
        self.admitted_ms = -1.0
        self.started_ms = -1.0
        self.told_ms = 0
        """predicted_start_ms of the answer to its admission."""
        self.position = 0
        """queue_position of that answer."""
        self.refusals = 0
