"""What stands before a task in the queue, as forecasts need it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ahead:
    """Work is expected slot time, milliseconds. Sums are without the task itself; weights count its flow and class."""

    flow_tasks: int
    """Tasks of its own flow (tenant and class) that are served before it …"""
    flow_work_ms: float
    """… and their work."""
    flow_weight: int
    flows_weight: int
    """Sum of the weights of the flows of its class that wait, its own included."""
    class_tasks: int
    """All tasks that wait in its class …"""
    class_work_ms: float
    """… and their work."""
    class_weight: int
    other_tasks: int
    """All tasks that wait in other classes …"""
    other_work_ms: float
    """… and their work."""
    other_weight: int
    """Sum of the weights of the other classes in which tasks wait."""
