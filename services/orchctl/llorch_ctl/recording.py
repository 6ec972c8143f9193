"""Writes what a live system put on record to a file that the simulator replays: its pools, then its audit records.

The stream is read from its end backwards, in pieces, until a piece begins before the wanted time: what was stored first
is what happened first, nearly, and the simulator does not need more than that.
"""

from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from llorch_ctl import pools
from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus, Message
from llorch_shared.desired.tenants import TENANTS
from llorch_shared.pool_policy import with_tenants
from llorch_shared.wire.audit import AUDIT_DECODER
from llorch_shared.wire.spec import PoolSpec

PIECE: Final = 20_000
"""Records read at once: some megabytes."""
RECORDS_MAX: Final = 2_000_000
"""What is kept of the time asked for: some hundred bytes each, and five of them per task."""


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    records: int
    cut: bool
    """There is more in that time than is read."""


async def record(bus: Bus, file: Path, *, from_ms: int) -> Recorded:
    """Everything since `from_ms` (Unix milliseconds). Raises BusError, OSError."""
    tenants = {name: tenant for name, (tenant, _) in (await TENANTS.all(bus)).items()}
    specs = {name: with_tenants(pool, tenants) for name, pool in (await pools.stored(bus)).items()}
    pieces = await _read(bus, from_ms)
    with file.open("wb") as lines:
        for pool_id in sorted(specs):
            _write(lines, b'{"pool":%b}' % msgspec.json.encode(_without_secrets(specs[pool_id])))
        for message in pieces:
            _write(lines, message.data)
    return Recorded(records=len(pieces), cut=len(pieces) >= RECORDS_MAX)


async def _read(bus: Bus, from_ms: int) -> list[Message]:
    """In the order they were stored."""
    before = (await bus.stream_state(streams.AUD)).last_seq + 1
    pieces: list[list[Message]] = []
    count = 0
    while before > 1 and count < RECORDS_MAX:
        first = max(1, before - PIECE)
        piece = [
            message
            for message in await bus.replay(streams.AUD, subjects.ALL_AUDITS, from_seq=first, limit=PIECE)
            if message.seq < before
        ]
        if not piece:
            break
        wanted = [message for message in piece if AUDIT_DECODER.decode(message.data).at_ms >= from_ms]
        pieces.append(wanted)
        count += len(wanted)
        if AUDIT_DECODER.decode(piece[0].data).at_ms < from_ms:
            break
        before = first
    return [message for piece in reversed(pieces) for message in piece]


def _without_secrets(spec: PoolSpec) -> PoolSpec:
    """The environment of an engine may hold secrets, and nobody simulates it."""
    provisioning = msgspec.structs.replace(spec.provisioning, env={})
    return msgspec.structs.replace(spec, provisioning=provisioning)


def _write(lines: BinaryIO, data: bytes) -> None:
    lines.write(data)
    lines.write(b"\n")
