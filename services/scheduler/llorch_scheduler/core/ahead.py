"""What stands before a task in the queue: as `llorch_shared.waiting` needs it."""

from llorch_shared.waiting import Ahead

__all__ = ["Ahead"]
