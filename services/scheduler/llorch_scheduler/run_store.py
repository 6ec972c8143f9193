"""Run records and placements, written so that a repeat is harmless: the record by compare-and-set, the placement
under a message id. Before every write the term is checked.
"""

import asyncio
from collections.abc import Mapping
from typing import Final

import msgspec

from llorch_scheduler.lease import Term
from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus, NoStream, Stored, Unanswered, WrongSequence
from llorch_shared.wire.run import Placement, RunRecord, decode_run
from llorch_shared.wire.version import Kind, version_headers

STORE_TRIES: Final = 3
STORE_TIMEOUT_S: Final = 2.0
_RETRY_S: Final = 0.05

_encode: Final = msgspec.json.Encoder().encode


class Conflict(Exception):
    """Somebody wrote the run record first."""

    def __init__(self, record: RunRecord, seq: int) -> None:
        super().__init__(f"the record of {record.task_id} stands at #{seq} as {record.state}")
        self.record: Final = record
        self.seq: Final = seq


class RunStore:
    """What stores raises SteppedDown when the term is over."""

    def __init__(self, bus: Bus, term: Term) -> None:
        self._bus: Final = bus
        self._term: Final = term

    async def record(self, record: RunRecord, expect_seq: int) -> int:
        """Compare-and-set. Raises Conflict, BusError; Unreadable when what won cannot be read here. A write of ours
        whose ack got lost is recognised as ours."""
        subject = subjects.run(record.task_id)
        try:
            headers = version_headers(Kind.RUN, record.request)
            return (await self._store(subject, _encode(record), headers, expect_seq=expect_seq)).seq
        except WrongSequence:
            stored, seq = await self._read_run(subject, after=expect_seq)
            counted = msgspec.structs.replace(
                stored,
                tokens_out=record.tokens_out,
                decode_ms=record.decode_ms,
                lost=record.lost,
                cancel_ms=record.cancel_ms,
                restarted_at=record.restarted_at,
            )
            if counted == record:
                return seq
            raise Conflict(stored, seq) from None

    async def wish_stored_ms(self, task_id: str) -> int:
        """When the wish to cancel a task was stored, by the clock of the bus; 0 when there is none. Raises BusError."""
        message = await self._bus.last(streams.RUN, subjects.cancel(task_id))
        return 0 if message is None or message.deleted else message.stored_ms

    async def _read_run(self, subject: str, *, after: int) -> tuple[RunRecord, int]:
        """The record that won. A replica of the stream may lag behind its leader: read again."""
        for _ in range(STORE_TRIES):
            message = await self._bus.last(streams.RUN, subject)
            if message is not None and message.seq > after:
                return decode_run(message.data, message.headers), message.seq
            await asyncio.sleep(_RETRY_S)
        raise Unanswered(f"{subject} changed, and its new record cannot be read yet")

    async def placement(self, record: RunRecord, run_seq: int) -> None:
        """Of a record that stands."""
        await self._store(
            subjects.placement(record.pool_id, record.replica_id),
            _encode(Placement(run=record, run_seq=run_seq)),
            version_headers(Kind.PLACEMENT, record.request),
            msg_id=f"{record.task_id}:{run_seq}",
        )

    def placement_ahead(self, record: RunRecord, node_id: str) -> None:
        """Of a record that nobody has stored: a signal. Raises TooLarge."""
        self._bus.publish(
            subjects.placement_ahead(node_id),
            _encode(Placement(run=record)),
            version_headers(Kind.PLACEMENT, record.request),
        )

    async def _store(
        self,
        subject: str,
        data: bytes,
        headers: Mapping[str, str],
        *,
        msg_id: str = "",
        expect_seq: int | None = None,
    ) -> Stored:
        """Store, and again when it is unclear whether it was stored: sequence or message id make that safe."""
        for attempt in range(1, STORE_TRIES + 1):
            self._term.check()
            try:
                return await self._bus.store(
                    subject,
                    data,
                    msg_id=msg_id,
                    expect_seq=expect_seq,
                    headers=headers,
                    timeout_s=STORE_TIMEOUT_S,
                )
            except (Unanswered, NoStream):
                if attempt == STORE_TRIES:
                    raise
                await asyncio.sleep(_RETRY_S * attempt)
        raise AssertionError("unreachable")
