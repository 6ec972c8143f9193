"""What clients asked and what they saw, in the order of time, as JSON lines. The checker reads nothing else about them.

Times are Unix seconds of one machine's clock, the same that engines and records use. An operation has a number that
joins what was asked with its answer; a reader has one that joins its connections.
"""

import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec

from llorch_shared.wire.task import TaskRequest

BUS: Final = "bus"


class Op(StrEnum):
    SUBMIT = "submit"
    CANCEL = "cancel"


class Outcome(StrEnum):
    ACCEPTED = "accepted"
    """The task is in the system, says a 202 or the server's ack."""
    REFUSED = "refused"
    """An error that says no: 4xx, or a full queue."""
    UNSURE = "unsure"
    """No answer, or an error that does not say whether it was done."""
    RECEIPT = "receipt"
    """204 of a cancel: it is final, and its slot is free."""
    PENDING = "pending"
    """202 of a cancel: the wish is stored."""


class Asked(msgspec.Struct, frozen=True, kw_only=True, tag="asked"):
    at: float
    op: int
    task: str
    what: Op
    via: str
    """The gateway, or `bus`."""
    pool: str = ""
    tenant: str = ""
    request: TaskRequest | None = None


class Answered(msgspec.Struct, frozen=True, kw_only=True, tag="answered"):
    at: float
    op: int
    task: str
    what: Op
    via: str
    outcome: Outcome
    status: int = 0
    code: str = ""


class Opened(msgspec.Struct, frozen=True, kw_only=True, tag="opened"):
    """A reader begins to read, from after `cursor`."""

    at: float
    reader: int
    task: str
    via: str
    cursor: str = ""


class Tokens(msgspec.Struct, frozen=True, kw_only=True, tag="tokens"):
    """Token events that came one after another: the first at `at`, the last at `until`."""

    at: float
    until: float
    reader: int
    task: str
    indices: list[int]
    texts: list[str]


class Restarted(msgspec.Struct, frozen=True, kw_only=True, tag="restarted"):
    """A reader was told that everything before this index is void."""

    at: float
    reader: int
    task: str
    index: int


class Closed(msgspec.Struct, frozen=True, kw_only=True, tag="closed"):
    """The connection is gone before the stream's end, by whomever."""

    at: float
    reader: int
    task: str
    why: str


class Ended(msgspec.Struct, frozen=True, kw_only=True, tag="ended"):
    """The terminal event: `finish_reason` of an end, `code` and `message` of an error."""

    at: float
    reader: int
    task: str
    tokens_out: int = 0
    finish_reason: str = ""
    code: str = ""
    message: str = ""
    restarted_at: int | None = None


class Turned(msgspec.Struct, frozen=True, kw_only=True, tag="turned"):
    """A reader was turned away with an error instead of a stream."""

    at: float
    reader: int
    task: str
    via: str
    status: int
    code: str


class Odd(msgspec.Struct, frozen=True, kw_only=True, tag="odd"):
    """A client saw something that is not part of the protocol."""

    at: float
    task: str
    what: str


class RunSeen(msgspec.Struct, frozen=True, kw_only=True, tag="run"):
    """A stored change of a run record, as the server republished it; not all are seen while the server is away."""

    at: float
    task: str
    seq: int
    state: str
    attempt: int


Entry = Asked | Answered | Opened | Tokens | Restarted | Closed | Ended | Turned | Odd | RunSeen
_DECODER: Final = msgspec.json.Decoder(Entry)


class Writer:
    """Appends entries to one file. The process that writes is never a victim, so the file's own buffer is enough."""

    def __init__(self, path: Path) -> None:
        self._file: Final = path.open("wb")
        self._numbers = 0

    def number(self) -> int:
        """A new one, for an operation or a reader."""
        self._numbers += 1
        return self._numbers

    def write(self, entry: Entry) -> None:
        self._file.write(msgspec.json.encode(entry) + b"\n")

    def close(self) -> None:
        self._file.close()


def now() -> float:
    return time.time()


def read(path: Path) -> Iterator[Entry]:
    with path.open("rb") as file:
        for line in file:
            yield _DECODER.decode(line)
