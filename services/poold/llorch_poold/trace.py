"""Writes the transcript of a stream whose task asks for that (`trace`), after its terminal frame.

It is made of the frames that the node keeps; since its id is its content, writing it again changes nothing. When the
node dies before it is written, the scheduler writes it.
"""

import asyncio
import logging
from typing import Final

from llorch_poold.node_context import NodeContext, ReplicaFacts
from llorch_shared import subjects
from llorch_shared.artifacts import Artifacts
from llorch_shared.bus.port import BusError
from llorch_shared.transcripts import trace_of, transcript_of
from llorch_shared.wire.run import RunRecord

log = logging.getLogger(__name__)

WRITE_TRIES: Final = 6
RETRY_FIRST_S: Final = 0.25


async def write_trace(node: NodeContext, facts: ReplicaFacts, run: RunRecord, session_id: str) -> None:
    """Of a task whose terminal frame is published. Gives up after some tries, and says so."""
    delay = RETRY_FIRST_S
    for number in range(WRITE_TRIES):
        try:
            artifact = trace_of(
                run,
                transcript_of(await _frames(node, run)),
                session_id=session_id,
                engine=facts.engine,
                engine_version=facts.engine_version,
            )
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
