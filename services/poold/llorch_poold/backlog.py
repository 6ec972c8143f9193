"""What readers of a task's stream have from earlier attempts: as the token log has it, and this node's own copy."""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import Final

from llorch_poold.attempt_frames import AttemptFrames
from llorch_poold.core.prefix import Sent, sent_before
from llorch_poold.node_context import NodeContext
from llorch_shared.bus.port import BusError
from llorch_shared.decode_times import decode_times
from llorch_shared.token_mark import holds
from llorch_shared.wire.run import RunRecord

log = logging.getLogger(__name__)

READ_TRIES_MAX: Final = 5
READ_RETRY_FIRST_S: Final = 0.01
READ_RETRY_FACTOR: Final = 3


class BacklogUnread(Exception):
    """The bus does not tell what readers already have."""


class Backlog:
    """Empty for a first attempt; of a later one, which announces itself before it looks, known after `read`."""

    def __init__(self, node: NodeContext, run: RunRecord, subject: str, frames: AttemptFrames) -> None:
        self._node: Final = node
        self._run: Final = run
        self._subject: Final = subject
        self._frames: Final = frames
        self._read = run.attempt == 1
        self._in_log = 0
        self._decoded_ms: dict[int, int] = {}
        self.sent = Sent(started=False, tokens={})
        self.known = False
        """What was sent is certainly all that readers can have."""

    @property
    def count(self) -> int:
        """Tokens that readers have."""
        return self.sent.count

    @property
    def texts(self) -> Iterable[str]:
        """The texts of these."""
        return self.sent.tokens.values()

    @property
    def log_lacks_some(self) -> bool:
        return self._in_log < len(self.sent.tokens)

    @property
    def lost_ms(self) -> int:
        """What the attempts decoded that are not in the record's time."""
        return sum(self._decoded_ms.get(attempt, 0) for attempt in self._run.lost)

    async def read(self) -> None:
        """Once. Raises BacklogUnread."""
        if self._read:
            return
        kept = self._node.retention.get(self._run.task_id)
        own = kept is not None and kept.attempt == self._run.attempt - 1 and not kept.dropped
        log_has, holds_all = await self._read_log()
        self.sent = sent_before([*(kept.parts if kept is not None and own else ()), *log_has])
        self._in_log = len(sent_before(log_has).tokens)
        self.known = own or holds_all
        self._read = True

    async def _read_log(self) -> tuple[Sequence[bytes], bool]:
        """What the token log has of this stream up to our own announcement, and whether that is all that was ever
        stored of it. Readers take nothing of an earlier attempt that comes after the announcement, so a node that was
        asleep when it lost the task cannot add to what is read here. The server takes a moment to store it; one that
        is sent again is the same to readers."""
        announcement = self._frames.announcement
        delay = READ_RETRY_FIRST_S
        for _ in range(READ_TRIES_MAX):
            await self._node.outlet.wait_open()
            self._node.outlet.publish(self._subject, announcement)
            try:
                messages = await self._node.backlogs.read(self._subject)
                stored = [message.data for message in messages]
                log_state = await self._node.token_log.state()
            except BusError as error:
                log.info("reading the earlier tokens of %s: %s", self._run.task_id, error)
            else:
                if announcement in stored:
                    self._decoded_ms = decode_times(messages) if self._run.lost else {}
                    return stored, holds(log_state, self._run.token_log)
            await asyncio.sleep(delay)
            delay *= READ_RETRY_FACTOR
        raise BacklogUnread("the bus does not tell which tokens were already sent")
