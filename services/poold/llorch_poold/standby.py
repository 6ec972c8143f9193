"""A replica's part in a reload: it comes up with the new model beside the one that serves, and is held there, ready in
all but name, until the reload is decided (`core/reload.py`).
"""

import asyncio
from typing import Final

from llorch_poold.engine_life import EngineLife
from llorch_poold.provisioning import Progress
from llorch_shared.wire.registry import ReplicaState, Standby, StandbyState


class Hold:
    """`reload_id`: of the reload whose new model it has; empty for a replica that serves when it is ready."""

    def __init__(self, reload_id: str) -> None:
        self.reload_id = reload_id
        self.no_room = False
        """It has no room beside the replica that serves, and would fit alone."""
        self._ready = False
        self._released: Final = asyncio.Event()

    def release(self) -> None:
        """The reload is decided for its model."""
        self.reload_id = ""
        self._released.set()

    async def last(self, life: EngineLife, say: Progress) -> str:
        """Until it is released, at once where nothing holds it; returns why the engine broke meanwhile, else empty."""
        if not self.reload_id:
            return ""
        self._ready = True
        say("ready, and waits for the reload to be decided")
        try:
            return await life.broken_before(self._released.wait())
        finally:
            self._ready = False

    def told(self, state: ReplicaState) -> Standby | None:
        """As the registry has it."""
        if not self.reload_id:
            return None
        broken = state in (ReplicaState.BACKOFF, ReplicaState.FAILED)
        waits = state is ReplicaState.BACKOFF and self.no_room
        found = StandbyState.FAILED if broken and not waits else StandbyState.COMING
        return Standby(reload_id=self.reload_id, state=StandbyState.READY if self._ready else found)
