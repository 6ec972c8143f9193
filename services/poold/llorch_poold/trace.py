"""The transcript of a stream, kept as an artifact when its task asks for that (`trace`).

What every reader has is in it: how it started, each token once, how it ended. It is made of the frames that the node
keeps, after the terminal frame; since its id is its content, writing it again changes nothing.
"""

import asyncio
import logging
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from llorch_poold.node_context import NodeContext, ReplicaFacts
from llorch_shared import subjects
from llorch_shared.artifacts import Artifacts
from llorch_shared.bus.port import BusError
from llorch_shared.wire.artifacts import Artifact, ArtifactKind
from llorch_shared.wire.frames import split_events
from llorch_shared.wire.run import RunRecord

log = logging.getLogger(__name__)

WRITE_TRIES: Final = 6
RETRY_FIRST_S: Final = 0.25
_STARTED, _TOKEN, _TERMINAL = "started", "token", ("end", "error")


class _Index(msgspec.Struct):
    i: int


_INDEX: Final = msgspec.json.Decoder(_Index)


def transcript_of(parts: Iterable[bytes]) -> list[dict[str, Any]]:
    """Events in the order of the stream, repeats and metrics left out: these are not the same for every reader."""
    started: list[dict[str, Any]] = []
    terminal: list[dict[str, Any]] = []
    tokens: dict[int, dict[str, Any]] = {}
    for part in parts:
        for event in split_events(part):
            told = {"event": event.event, "data": msgspec.Raw(event.data)}
            if event.event == _STARTED and not started:
                started.append(told)
            elif event.event == _TOKEN:
                tokens.setdefault(_INDEX.decode(event.data).i, told)
            elif event.event in _TERMINAL and not terminal:
                terminal.append(told)
    return [*started, *(tokens[index] for index in sorted(tokens)), *terminal]


def trace_of(run: RunRecord, session_id: str, facts: ReplicaFacts, transcript: list[dict[str, Any]]) -> Artifact:
    return Artifact(
        kind=ArtifactKind.TRACE,
        content={"transcript": transcript},
        tags=("sse", "stream", f"task:{run.task_id}", f"session:{session_id}"),
        metadata={
            "engine": facts.engine,
            "engine_version": facts.engine_version,
            "pool_id": run.pool_id,
            "replica_id": facts.replica_id,
        },
    )


async def write_trace(node: NodeContext, facts: ReplicaFacts, run: RunRecord, session_id: str) -> None:
    """Of a task whose terminal frame is published. Gives up after some tries, and says so."""
    delay = RETRY_FIRST_S
    for number in range(WRITE_TRIES):
        try:
            artifact = trace_of(run, session_id, facts, transcript_of(await _frames(node, run)))
            await Artifacts(node.bus, share_bytes=node.share_bytes).create(artifact, run.tenant)
            return
        except (BusError, ValueError) as error:
            if number == WRITE_TRIES - 1 or not isinstance(error, BusError):
                log.warning("the trace of task %s is not kept: %s", run.task_id, error)
                return
        await asyncio.sleep(delay)
        delay *= 2


async def _frames(node: NodeContext, run: RunRecord) -> list[bytes]:
    kept = node.retention.get(run.task_id)
    if kept is not None and not kept.dropped and kept.attempt == run.attempt:
        return list(kept.parts)
    return [message.data for message in await node.backlogs.read(subjects.tokens(run.lane, run.task_id))]
