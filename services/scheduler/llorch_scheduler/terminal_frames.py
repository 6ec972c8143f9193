"""The last frame of a task that the scheduler ends, and what its record says of the tokens an earlier attempt sent."""

import logging
from typing import NamedTuple

import msgspec

from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus, BusError
from llorch_shared.decode_times import decode_times
from llorch_shared.streaming.endings import terminal_frame
from llorch_shared.wire.frames import BadFrame, Kind, announced_attempt, peek, restarted_at
from llorch_shared.wire.run import RunRecord

log = logging.getLogger(__name__)


class Sent(NamedTuple):
    """What earlier attempts streamed."""

    tokens: int
    restarted_at: int | None
    decode_ms: dict[int, int]
    """By attempt."""


def publish_terminal(bus: Bus, record: RunRecord) -> None:
    """The record is final: say so on the token stream. A reader that misses this makes it from the record."""
    bus.publish(subjects.tokens(record.lane, record.task_id), terminal_frame(record))


async def sent_before(bus: Bus, record: RunRecord) -> Sent:
    """No tokens when the token stream cannot be read."""
    try:
        messages = await bus.replay(streams.TOK, subjects.tokens(record.lane, record.task_id))
    except BusError as error:
        log.info("the tokens of %s cannot be counted: %s", record.task_id, error)
        return Sent(0, record.restarted_at, {})
    last, attempt, void = -1, 0, record.restarted_at
    for message in messages:
        try:
            header = peek(message.data)
        except BadFrame:
            log.warning("a message of %s is not a frame", message.subject)
            continue
        if header.kind is Kind.METRICS:
            announced, told = announced_attempt(message.data), restarted_at(message.data)
            if told is not None and announced >= attempt:
                void = told
            attempt = max(attempt, announced)
        elif header.kind is Kind.TOKENS and header.attempt >= attempt:
            last = max(last, header.last)
    return Sent(last + 1, void, decode_times(messages))


def counted(record: RunRecord, sent: Sent) -> RunRecord:
    """With what its readers have and, where a session pays for it, the time of the attempts that died, the present one
    among them: one that its node has ended, or given back, is not the present one any more."""
    died_ms = 0
    if record.session is not None:
        died_ms = sum(sent.decode_ms.get(attempt, 0) for attempt in {*record.lost, record.attempt})
    return msgspec.structs.replace(
        record,
        tokens_out=sent.tokens,
        restarted_at=sent.restarted_at,
        decode_ms=record.decode_ms + died_ms,
        lost=(),
    )
