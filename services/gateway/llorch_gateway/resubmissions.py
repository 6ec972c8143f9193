"""Tasks that somebody had stored before: is their admission on the audit record?

Who stored a task may have been killed before the record of its admission was. Whoever is handed the same task later
makes up for that; the record holds each admission once, whoever says it. It is looked for a little later, when one that
lives has said so itself.
"""

import asyncio
import logging
from collections import deque
from typing import Final

from llorch_shared import streams, subjects
from llorch_shared.audit import Audit
from llorch_shared.bus.port import Bus, BusError
from llorch_shared.wire.audit import AuditRecord

log = logging.getLogger(__name__)

LOOK_AFTER_S: Final = 2.0
"""A gateway that lives writes its audit within a tenth of a second; a bus that is busy takes longer."""
LOOK_EVERY_S: Final = 0.5
LOOKS_MAX: Final = 64
"""Looked for at once."""
WAITING_MAX: Final = 10_000
"""Beyond it the oldest are not looked for: who is sent this much again at once has another trouble."""


class Resubmissions:
    """`saw` never waits. `look` is the one task that asks the bus."""

    def __init__(self, bus: Bus, audit: Audit) -> None:
        self._bus: Final = bus
        self._audit: Final = audit
        self._waiting: Final[deque[tuple[float, AuditRecord]]] = deque(maxlen=WAITING_MAX)

    def saw(self, admission: AuditRecord) -> None:
        """This task was sent again; `admission` is what is recorded if nothing was."""
        self._waiting.append((asyncio.get_running_loop().time(), admission))

    async def look(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            before = asyncio.get_running_loop().time() - LOOK_AFTER_S
            while due := self._due(before):
                looked = await asyncio.gather(*map(self._made_up_for, due))
                again = [one for one, done in zip(due, looked, strict=True) if not done]
                if again:
                    self._waiting.extendleft((before, one) for one in reversed(again))
                    break

    def _due(self, before: float) -> list[AuditRecord]:
        """The next that were seen until then, taken out."""
        due: list[AuditRecord] = []
        while self._waiting and self._waiting[0][0] <= before and len(due) < LOOKS_MAX:
            due.append(self._waiting.popleft()[1])
        return due

    async def _made_up_for(self, admission: AuditRecord) -> bool:
        """False when that cannot be told now."""
        subject = subjects.audit(str(admission.event), admission.task_id)
        try:
            known = await self._bus.last(streams.AUD, subject)
        except BusError as error:
            log.info("the admission of %s cannot be looked for now: %s", admission.task_id, error)
            return False
        if known is None:
            log.warning("the admission of %s was not on the record, and is now", admission.task_id)
            await self._audit.record(admission)
        return True
