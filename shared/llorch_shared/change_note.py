"""A change of what is wanted carries the record of itself: who made it, by which door, what it changes.

It is one message of a bucket, and its audit record another, of another stream; who writes both may be killed between
them. So the record travels in a header of the first, and whoever finds that the second is missing writes it
(`unaudited_changes` of the scheduler). `detail.stored` names the stored message, and tells that both are one.
"""

import json
import logging
from collections.abc import Mapping
from typing import Final

import msgspec

from llorch_shared.bus.port import Message
from llorch_shared.identifiers import is_name
from llorch_shared.readable import UNREADABLE
from llorch_shared.wire.audit import AUDIT_DECODER, AuditRecord, Detail

log = logging.getLogger(__name__)

CHANGE_HEADER: Final = "Llorch-Change"
NOTE_BYTES_MAX: Final = 16 * 1024
"""Of the header. Every process that follows the bucket gets it."""
STORED: Final = "stored"
"""Key of a record's detail: the stream and sequence of the change that it is about."""
CUT: Final = "what was changed is too long to be kept here: compare the versions"


def headers(record: AuditRecord) -> dict[str, str]:
    """What the change says of itself."""
    text = _written(record)
    if len(text) > NOTE_BYTES_MAX:
        detail: Detail = {key: value for key, value in record.detail.items() if key != "changes"}
        text = _written(msgspec.structs.replace(record, detail={**detail, "changes": [CUT]}))
    return {CHANGE_HEADER: text} if len(text) <= NOTE_BYTES_MAX else {}


def stored(record: AuditRecord, stream: str, seq: int) -> AuditRecord:
    """The record of a change that stands."""
    return msgspec.structs.replace(record, detail={**record.detail, STORED: name(stream, seq)})


def name(stream: str, seq: int) -> str:
    return f"{stream}/{seq}"


def read(message: Message, stream: str) -> AuditRecord | None:
    """The record that is to stand for this change; None where it carries none, or one of nothing that has a name."""
    text = message.headers.get(CHANGE_HEADER)
    if text is None:
        return None
    if len(text) > NOTE_BYTES_MAX:
        log.warning("what %s #%d says of who changed it is too long", message.subject, message.seq)
        return None
    try:
        record = AUDIT_DECODER.decode(text)
    except UNREADABLE as error:
        log.warning("what %s #%d says of who changed it cannot be read: %s", message.subject, message.seq, error)
        return None
    if not is_name(record.task_id):
        log.warning("what %s #%d says of who changed it names nothing", message.subject, message.seq)
        return None
    return stored(record, stream, message.seq)


def _written(record: AuditRecord) -> str:
    """In ASCII, as headers are."""
    return json.dumps(msgspec.to_builtins(record), separators=(",", ":"))


def with_note(own: Mapping[str, str], record: AuditRecord | None) -> dict[str, str]:
    return {**own, **(headers(record) if record is not None else {})}
