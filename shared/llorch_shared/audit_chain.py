"""How audit records are chained, so that a changed, removed, doubled or moved one is found. Pure.

A writer is one life of one process: its actor and a random life id. Each of its records carries the writer, its number
from 1, `prev`, the hash of the writer's record before it (empty in the first), and its own `hash`, over its subject and
all of its payload before that. At an orderly stop a closing record says how many there were.

The hash is the first 128 bits of SHA-256. It has no key: who can write to the stream's disk and makes the whole rest of
a chain anew is not found by it. Nor is a missing tail of a life that was killed and has no closing record.
"""

import hashlib
import secrets
from collections.abc import Sequence
from typing import Final

import msgspec

from llorch_shared import subjects
from llorch_shared.wire.audit import AuditEvent, AuditRecord

HASH_CHARACTERS: Final = 32
_HASH_FIELD: Final = b',"hash":"'
_TAIL_BYTES: Final = len(_HASH_FIELD) + HASH_CHARACTERS + len(b'"}')

_encode: Final = msgspec.json.Encoder().encode


class Chain:
    """Of one writer. `link` promises nothing; `stored` says that what was linked last stands."""

    __slots__ = ("_linked", "_written", "actor", "hash", "life", "number", "writer")

    def __init__(self, actor: str) -> None:
        self.actor: Final = actor
        self.life: Final = secrets.token_hex(8)
        self.writer: Final = f"{actor}/{self.life}"
        self.number = 0
        """Of the last record that stands."""
        self.hash = ""
        self._written: Final = _encode(self.writer)
        self._linked = (0, "")

    @property
    def next_id(self) -> str:
        """A message id for what is linked next, alone or as a batch: the server keeps it once."""
        return f"{self.writer}:{self.number + 1}"

    def link(self, entries: Sequence[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        """(subject, encoded record) of each, with its link written behind it; the record is not encoded again."""
        linked = []
        number, known = self.number, self.hash.encode()
        for subject, content in entries:
            number += 1
            body = b'%b,"writer":%b,"number":%d,"prev":"%b"' % (content[:-1], self._written, number, known)
            known = _digest(subject, body)
            linked.append((subject, b'%b%b%b"}' % (body, _HASH_FIELD, known)))
        self._linked = (number, known.decode())
        return linked

    def stored(self) -> None:
        self.number, self.hash = self._linked

    def closing(self, at_ms: int, *, more: int = 0) -> tuple[str, bytes]:
        """The last record of this life, not linked yet. `more`: records linked with it and before it."""
        record = AuditRecord(
            event=AuditEvent.WRITER_CLOSED,
            task_id=self.life,
            at_ms=at_ms,
            actor=self.actor,
            detail={"records": self.number + more},
        )
        return entry(record)


def entry(record: AuditRecord) -> tuple[str, bytes]:
    return subjects.audit(record.event, record.task_id), _encode(record)


def alone(record: AuditRecord) -> list[tuple[str, bytes]]:
    """A whole life of one record, for who acts once: the record and its closing, to be stored in one atomic batch."""
    chain = Chain(record.actor)
    return chain.link([entry(record), chain.closing(record.at_ms, more=1)])


def is_sound(subject: str, data: bytes) -> bool:
    """Whether a chained record is, to the byte, what its hash was made of."""
    body, tail = data[:-_TAIL_BYTES], data[-_TAIL_BYTES:]
    return tail == b'%b%b"}' % (_HASH_FIELD, _digest(subject, body))


def _digest(subject: str, body: bytes) -> bytes:
    return hashlib.sha256(b"%b\n%b" % (subject.encode(), body)).hexdigest()[:HASH_CHARACTERS].encode()
