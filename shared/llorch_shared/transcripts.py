"""The transcript of a stream as an artifact, for tasks that ask for it (`trace`): made of the stream's frames.

What every reader has is in it: how it started, each token once, how it ended. The node that ended a task writes it of
the frames it keeps; the scheduler does for what it ended itself, and for a node that died, of the token log.
"""

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from llorch_shared.wire.artifacts import Artifact, ArtifactKind
from llorch_shared.wire.frames import Started, split_events
from llorch_shared.wire.run import RunRecord

Transcript = list[dict[str, Any]]

_STARTED, _TOKEN, _TERMINAL = "started", "token", ("end", "error")


class _Index(msgspec.Struct):
    i: int


_INDEX: Final = msgspec.json.Decoder(_Index)
_DECODE_STARTED: Final = msgspec.json.Decoder(Started)
_NEVER_STARTED: Final = Started(queue_position=0, predicted_start_ms=0)


def transcript_of(parts: Iterable[bytes]) -> Transcript:
    """Events in the order of the stream, repeats and metrics left out: these are not the same for every reader. Raises
    ValueError for what is no frame."""
    started: Transcript = []
    terminal: Transcript = []
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


def is_whole(transcript: Transcript, tokens_out: int) -> bool:
    """Whether nothing is missing of a stream that has so many tokens."""
    told = [event["event"] for event in transcript]
    return told.count(_TOKEN) >= tokens_out and (not tokens_out or told[0] == _STARTED)


def started_of(transcript: Transcript) -> Started:
    """Who began the stream; nobody's name where nobody did. Raises ValueError for what is no frame."""
    if transcript and transcript[0]["event"] == _STARTED:
        return _DECODE_STARTED.decode(transcript[0]["data"])
    return _NEVER_STARTED


def trace_of(run: RunRecord, transcript: Transcript, *, session_id: str, engine: str, engine_version: str) -> Artifact:
    """`run`: the final record."""
    return Artifact(
        kind=ArtifactKind.TRACE,
        content={"transcript": transcript},
        tags=("sse", "stream", tag_of(run.task_id), f"session:{session_id}"),
        metadata={
            "engine": engine,
            "engine_version": engine_version,
            "pool_id": run.pool_id,
            "replica_id": run.replica_id,
        },
    )


def tag_of(task_id: str) -> str:
    """By which the trace of a task is found."""
    return f"task:{task_id}"
