"""What a task requires of a replica: tasks of one shape can be served by the same replicas and wait for the same."""

from typing import Final

import msgspec

from llorch_shared.wire.task import Workload

STABLE: Final = "stable"
CANARY: Final = "canary"


class Shape(msgspec.Struct, frozen=True, gc=False, cache_hash=True):
    """Hashable and small; made by `placement.shape_of`."""

    workload: Workload = Workload.COMPLETION
    ctx: int = 0
    """Context class: the least context size of a replica that will do."""
    device: str = ""
    """The device mask the client requires; empty when any will do."""
    side: str = STABLE
    """Which replica set takes it: `stable` or `canary`."""
    extensions: tuple[str, ...] = ()
    """Features it needs, sorted."""
    determinism_class: str = ""
    """Where its stream began and must be repeated byte for byte: while a replica of the class is ready, one of them."""


ANY: Final = Shape()
