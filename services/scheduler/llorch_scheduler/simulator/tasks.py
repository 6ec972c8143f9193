"""One task as the simulation follows it: light, because there are many."""

from typing import Final

from llorch_scheduler.simulator.arrivals import Recorded
from llorch_scheduler.simulator.gauge import FlowUse
from llorch_scheduler.simulator.scenario import Flow
from llorch_shared.wire.task import Priority

_NOBODYS: Final = FlowUse()


class SimTask:
    """Times in simulated milliseconds; negative while it has not happened."""

    __slots__ = (
        "admitted_ms", "arrived_ms", "cancel_ms", "deadline_ms", "first_token_ms", "flow", "max_tokens", "number",
        "on_time_placed", "on_time_told", "output", "priority", "promised", "prompt", "refusals", "served_ms",
        "session", "source", "started_ms", "task_id", "tenant", "told_ms", "took_slot_ms", "use", "waited_ms",
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
        turn: int = 0,
    ) -> None:
        """`source` is the index of the flow in its scenario, `turn` counts the flow's tasks."""
        self.number: Final = number
        self.task_id = f"00000000-0000-4000-8000-{number:012x}"
        self.flow: Final = flow
        self.source: Final = source
        self.prompt: Final = prompt
        self.output: Final = output
        self.tenant: Final = tenant
        self.priority: Final = priority
        self.arrived_ms: Final = at_ms
        self.max_tokens = max(output, flow.max_tokens)
        self.deadline_ms = flow.deadlines_ms[turn % len(flow.deadlines_ms)]
        """Budget from admission to the last token."""
        self.session = f"00000000-0000-4000-{0x8000 + source % 0x4000:04x}-{turn % flow.sessions:012x}"
        self.served_ms = 0.0
        """Slot time of a recorded task, which takes just this long; 0: as long as the engine needs."""
        self.waited_ms = -1.0
        """How long it waited on a live system."""
        self.cancel_ms = -1.0
        """When the client cancels, from admission on."""
        self.admitted_ms = -1.0
        self.started_ms = -1.0
        """First start; later attempts leave it."""
        self.took_slot_ms = -1.0
        """Start of the present attempt."""
        self.first_token_ms = -1.0
        """When the present attempt had read its prompt."""
        self.told_ms = 0
        """predicted_start_ms of the answer to its admission."""
        self.on_time_told: float | None = None
        """Chance to end before its deadline, as seen at admission …"""
        self.on_time_placed: float | None = None
        """… and when it was placed last."""
        self.use: FlowUse = _NOBODYS
        """Where its use of slots is counted, from its admission on."""
        self.refusals = 0
        self.promised = False
        """The last refusal promised to keep a place."""

    def follow(self, recorded: Recorded) -> None:
        """Do as it did on a live system."""
        self.max_tokens, self.deadline_ms = recorded.max_tokens, recorded.deadline_ms
        self.session = recorded.session
        self.served_ms, self.cancel_ms = recorded.served_ms, recorded.cancel_ms
        self.waited_ms = recorded.waited_ms
