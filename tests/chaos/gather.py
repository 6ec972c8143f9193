"""Reads what the bus holds when a run is over, for the checker."""

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Final

import httpx
import msgspec

from chaos.checks_of_books import ENDS, STARTED
from chaos.evidence import After, Counter, StoredStream
from llorch_ctl.audit_verification import Verification
from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus, Message
from llorch_shared.states import FINAL
from llorch_shared.wire.audit import AUDIT_DECODER, AuditRecord
from llorch_shared.wire.frames import Kind, Token, announced_attempt, peek, split_events
from llorch_shared.wire.run import RUN_DECODER
from support.system import System

MESSAGES_MAX: Final = 2_000_000
AUDIT_S: Final = 20.0
"""Audits are written off the hot path; an end whose writer died is audited by the next life of it."""
_STREAM_INFO: Final = "$JS.API.STREAM.INFO."


class _Info(msgspec.Struct):
    created: datetime


async def gather(system: System, unsettled: Sequence[str]) -> After:
    """Waits for the audit of every end, at most `AUDIT_S`."""
    runs = tuple(RUN_DECODER.decode(each.data) for each in await system.bus.snapshot(streams.RUN, subjects.ALL_RUNS))
    ended = {run.task_id for run in runs if run.state in FINAL}
    deadline = time.monotonic() + AUDIT_S
    audits = await _audits(system.bus)
    while ended - {audit.task_id for audit in audits if audit.event in ENDS} and time.monotonic() < deadline:
        audits = await _audits(system.bus)
    report = await Verification(system.bus, now_ms=time.time_ns() // 1_000_000, told=lambda *_: None).run()
    info = await system.bus.request(_STREAM_INFO + streams.TOK, b"")
    frames = await system.bus.replay(streams.TOK, subjects.ALL_TOKENS, limit=MESSAGES_MAX)
    return After(
        runs=runs,
        audits=audits,
        streams=stored_streams(frames),
        tokens_since=msgspec.json.decode(info.data, type=_Info).created.timestamp(),
        unsettled=tuple(unsettled),
        record_faults=tuple(
            f"{each.fault} {each.said} ({each.task_id or each.writer}, #{each.seq})" for each in report.first
        ),
        counters=await _counters(system),
    )


def stored_streams(messages: Sequence[Message]) -> dict[str, StoredStream]:
    """The token log by task, whatever was published again taken out."""
    texts: dict[str, dict[int, str]] = {}
    differing: dict[str, set[int]] = {}
    ends: dict[str, dict[str, None]] = {}
    speaks: dict[str, int] = {}
    for message in messages:
        task = subjects.last_token(message.subject)
        said = texts.setdefault(task, {})
        header = peek(message.data)
        announced = announced_attempt(message.data) if header.kind is Kind.METRICS else header.attempt
        if header.kind is Kind.TOKENS and announced < speaks.get(task, 0):
            continue
        speaks[task] = max(announced, speaks.get(task, 0))
        for event in split_events(message.data):
            if event.event == "token":
                token = msgspec.json.decode(event.data, type=Token)
                if said.setdefault(token.i, token.t) != token.t:
                    differing.setdefault(task, set()).add(token.i)
            elif event.event in ("end", "error"):
                ends.setdefault(task, {})[event.data.decode()] = None
    return {
        task: StoredStream(texts=said, differing=tuple(sorted(differing.get(task, ()))), ends=tuple(ends.get(task, ())))
        for task, said in texts.items()
    }


async def _audits(bus: Bus) -> tuple[AuditRecord, ...]:
    found = await bus.replay(streams.AUD, subjects.ALL_AUDITS, limit=MESSAGES_MAX)
    return tuple(AUDIT_DECODER.decode(message.data) for message in found)


async def _counters(system: System) -> tuple[Counter, ...]:
    counters = []
    for name, process in system.processes.items():
        if name.startswith("poold-"):
            try:
                value = await system.metric(name, STARTED)
            except httpx.HTTPError:
                continue
            counters.append(Counter(process=name, metric=STARTED, value=value, whole=process.starts == 1))
    return tuple(counters)
