"""Answers `sch.<shard>.locate`: where is this task, which has no run record yet?

"Not found" is said for the pools of this shard, and only when it is certain: after everything stored in their admission
streams when the question came has been pulled and decided on, and the run record has been looked for once more.
"""

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from llorch_scheduler.admissions import Admissions
from llorch_scheduler.core.scheduler import SchedulerCore
from llorch_scheduler.inbox import Inbox
from llorch_scheduler.lease import Term
from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus, Message, Unanswered
from llorch_shared.wire.run import Located, decode_run, located_of
from llorch_shared.wire.task import REF_DECODER
from llorch_shared.wire.version import NewerVersion

CATCH_UP_S: Final = 1.5
"""Less than the asker's timeout: it is better not to answer than to say "unknown" of a task that waits."""

_encode: Final = msgspec.json.Encoder().encode


class Locator:
    """`waits`: whether a task waits aside, pulled and not yet decided on."""

    def __init__(
        self,
        bus: Bus,
        term: Term,
        core: SchedulerCore,
        admissions: Admissions,
        inbox: Inbox,
        *,
        waits: Callable[[str], bool],
    ) -> None:
        self._bus: Final = bus
        self._term: Final = term
        self._core: Final = core
        self._admissions: Final = admissions
        self._inbox: Final = inbox
        self._waits: Final = waits

    async def answer(self, message: Message) -> tuple[bytes, Mapping[str, str]]:
        """Raises Unanswered when there is no certain answer: the asker's timeout tells it so."""
        return _encode(await self.locate(REF_DECODER.decode(message.data).task_id.lower())), {}

    async def locate(self, task_id: str) -> Located:
        if (found := self._known(task_id)) is not None:
            return found
        if not await self._admissions.caught_up(CATCH_UP_S):
            raise Unanswered("the queues are not pulled up to now")
        if self._waits(task_id):
            raise Unanswered("it waits for the account of its session")
        await self._inbox.settled()
        return self._known(task_id) or await self._recorded(task_id)

    def _known(self, task_id: str) -> Located | None:
        if not self._term.active:
            raise Unanswered(f"this scheduler no longer decides: {self._term.reason}")
        found = self._core.locate(task_id)
        return found if found.found else None

    async def _recorded(self, task_id: str) -> Located:
        """A task that was placed, or ended, between the asker's look at its record and ours."""
        message = await self._bus.last(streams.RUN, subjects.run(task_id))
        if message is None:
            return Located(found=False)
        try:
            record = decode_run(message.data, message.headers)
        except NewerVersion as error:
            raise Unanswered(str(error)) from error
        return located_of(record)
