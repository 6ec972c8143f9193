"""Stored JSON as those read it who go on without a value that cannot be read: a foreign key of a bucket must end
nobody's loop."""

import logging
from typing import Final, TypeVar

import msgspec

log = logging.getLogger(__name__)

UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding a stranger's bytes can raise: invalid UTF-8 and too deep a nesting are no errors of the library's."""

T = TypeVar("T")


def readable(decoder: "msgspec.json.Decoder[T]", data: bytes, what: str) -> T | None:
    """None, with a warning that names `what`, for what cannot be read."""
    try:
        return decoder.decode(data)
    except UNREADABLE as error:
        log.warning("%s cannot be read and is ignored: %s", what, error)
        return None


class _Named(msgspec.Struct, frozen=True):
    task_id: str = ""


_NAMED: Final = msgspec.json.Decoder(_Named)


def named_task(data: bytes) -> str:
    """The id that a payload says is its task's, in lower case; empty where it says none."""
    try:
        return _NAMED.decode(data).task_id.lower()
    except UNREADABLE:
        return ""
