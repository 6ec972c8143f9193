"""A dead letter: a message of a queue that cannot be worked on, as it was, with what is to be known in its headers.

The payload is the original's. The original's headers travel under a prefix, because some of them are orders to the
server (`Nats-Expected-…`, `Nats-TTL`) that were meant for another stream.
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

import msgspec

ORIGINAL: Final = "Llorch-Original-"
"""Prefix of the original's headers."""
REASON: Final = "Llorch-Dead-Reason"
PROBLEM: Final = "Llorch-Dead-Problem"
SUBJECT: Final = "Llorch-Dead-Subject"
STREAM: Final = "Llorch-Dead-Stream"
SEQUENCE: Final = "Llorch-Dead-Sequence"
AT_MS: Final = "Llorch-Dead-At-Ms"
ACTOR: Final = "Llorch-Dead-Actor"
TASK: Final = "Llorch-Dead-Task"
CUT: Final = "Llorch-Dead-Cut"

PROBLEM_CHARACTERS_MAX: Final = 500
CUT_PAYLOAD_BYTES: Final = 64 * 1024
CUT_HEADER_BYTES: Final = 16 * 1024
"""What is kept of an original that fills the server's message limit alone, so that a letter about it has no room."""
_SERVER: Final = "nats-"
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


class What(StrEnum):
    """Which queue it was taken from."""

    ADMISSION = "admission"
    PLACEMENT = "placement"


class Reason(StrEnum):
    UNDECODABLE = "undecodable"
    """No release can read it."""
    UNKNOWN_VERSION = "unknown_version"
    """A newer release wrote it: replay it once one that reads it is here."""
    TOO_LARGE = "too_large"
    """Over what a placement can carry; it was not read."""
    UNPROCESSABLE = "unprocessable"
    """Its reader broke on it. Set aside at the first time: the server forgets how often it delivered something when
    the next scheduler takes over, so a count would never reach a bound."""


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about one letter but its place in the stream of letters."""

    what: What
    pool_id: str
    reason: Reason
    problem: str
    """In words, for people."""
    subject: str
    """Where the original was published."""
    stream: str
    seq: int
    """The original's, in its stream."""
    at_ms: int
    """When it was given up, Unix milliseconds."""
    actor: str
    """Who gave it up."""
    task_id: str = ""
    """Where one could be read: that task has ended with an error."""
    cut_bytes: int = 0
    """Size of an original of which only the beginning is kept; 0 where it is whole."""
    headers: dict[str, str] = {}
    """The original's."""
    data: bytes = b""
    """The original's."""

    def replay_headers(self) -> dict[str, str]:
        """The original's headers but for its orders to the server, its message id among them."""
        return {name: value for name, value in self.headers.items() if not name.lower().startswith(_SERVER)}


def encode_letter(letter: DeadLetter) -> dict[str, str]:
    """The headers of a letter; its payload is `letter.data`."""
    told = {
        REASON: str(letter.reason),
        PROBLEM: letter.problem[:PROBLEM_CHARACTERS_MAX],
        SUBJECT: letter.subject,
        STREAM: letter.stream,
        SEQUENCE: str(letter.seq),
        AT_MS: str(letter.at_ms),
        ACTOR: letter.actor,
        TASK: letter.task_id,
        CUT: str(letter.cut_bytes) if letter.cut_bytes else "",
    }
    kept = {f"{ORIGINAL}{_plain(name)}": _plain(value) for name, value in letter.headers.items()}
    return kept | {name: _plain(value) for name, value in told.items() if value}


def decode_letter(subject: str, data: bytes, headers: Mapping[str, str]) -> DeadLetter:
    """Raises ValueError for what is no letter."""
    *_, what, pool_id = subject.split(".")
    return DeadLetter(
        what=What(what),
        pool_id=pool_id,
        reason=Reason(headers.get(REASON, "")),
        problem=headers.get(PROBLEM, ""),
        subject=headers.get(SUBJECT, ""),
        stream=headers.get(STREAM, ""),
        seq=int(headers.get(SEQUENCE, "0")),
        at_ms=int(headers.get(AT_MS, "0")),
        actor=headers.get(ACTOR, ""),
        task_id=headers.get(TASK, ""),
        cut_bytes=int(headers.get(CUT, "0")),
        headers={name.removeprefix(ORIGINAL): value for name, value in headers.items() if name.startswith(ORIGINAL)},
        data=data,
    )


def cut(letter: DeadLetter) -> DeadLetter:
    """The beginning of what was too large to be kept whole."""
    kept: dict[str, str] = {}
    room = CUT_HEADER_BYTES
    for name, value in letter.headers.items():
        room -= len(name.encode()) + len(value.encode())
        if room < 0:
            break
        kept[name] = value
    size = len(letter.data) + sum(len(name.encode()) + len(value.encode()) for name, value in letter.headers.items())
    return msgspec.structs.replace(letter, headers=kept, data=letter.data[:CUT_PAYLOAD_BYTES], cut_bytes=size)


def _plain(text: str) -> str:
    """A line break in a header would end it."""
    return _CONTROL.sub(" ", text)
