"""One task as the simulation follows it: light, because there are many."""

from typing import Final

import msgspec

from llorch_scheduler.simulator.arrivals import Recorded
from llorch_scheduler.simulator.gauge import FlowUse
from llorch_scheduler.simulator.scenario import Flow
from llorch_shared.wire.task import Priority

_NOBODYS: Final = FlowUse()


class SimTask(msgspec.Struct, eq=False, gc=False):
    """Times in simulated milliseconds; negative while it has not happened. Made by `task_of`."""

    number: int
    task_id: str
    flow: Flow
    source: int
    """The index of its flow in the scenario."""
    prompt: int
    output: int
    tenant: str
    priority: Priority
    arrived_ms: float
    max_tokens: int
    deadline_ms: int
    """Budget from admission to the last token."""
    session: str
    served_ms: float = 0.0
    """Slot time of a recorded task, which takes just this long; 0: as long as the engine needs."""
    waited_ms: float = -1.0
    """How long it waited on a live system."""
    cancel_ms: float = -1.0
    """When the client cancels, from admission on."""
    admitted_ms: float = -1.0
    started_ms: float = -1.0
    """First start; later attempts leave it."""
    took_slot_ms: float = -1.0
    """Start of the present attempt."""
    first_token_ms: float = -1.0
    """When the present attempt had read its prompt."""
    told_ms: int = 0
    """predicted_start_ms of the answer to its admission."""
    on_time_told: float | None = None
    """Chance to end before its deadline, as seen at admission …"""
    on_time_placed: float | None = None
    """… and when it was placed last."""
    use: FlowUse = _NOBODYS
    """Where its use of slots is counted, from its admission on."""
    refusals: int = 0
    promised: bool = False
    """The last refusal promised to keep a place."""

    def follow(self, recorded: Recorded) -> None:
        """Do as it did on a live system."""
        self.max_tokens, self.deadline_ms = recorded.max_tokens, recorded.deadline_ms
        self.session = recorded.session
        self.served_ms, self.cancel_ms = recorded.served_ms, recorded.cancel_ms
        self.waited_ms = recorded.waited_ms


def task_of(
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
) -> SimTask:
    """`turn` counts the flow's tasks."""
    return SimTask(
        number=number,
        task_id=f"00000000-0000-4000-8000-{number:012x}",
        flow=flow,
        source=source,
        prompt=prompt,
        output=output,
        tenant=tenant,
        priority=priority,
        arrived_ms=at_ms,
        max_tokens=output if output > flow.max_tokens else flow.max_tokens,
        deadline_ms=flow.deadlines_ms[turn % len(flow.deadlines_ms)],
        session=f"00000000-0000-4000-{0x8000 + source % 0x4000:04x}-{turn % flow.sessions:012x}",
    )
