"""`orchctl why`: what happened to a task, and why, from the audit stream."""

from datetime import datetime
from typing import Final

import msgspec
import typer

from llorch_ctl import bus_client
from llorch_ctl.commands.task import TaskArgument
from llorch_ctl.core.story import Story, story, verdict
from llorch_ctl.exits import Exit, Problem
from llorch_ctl.terminal import OUT, ConfigOption, JsonOption, run, settings_from, write_json
from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus, BusError, Message
from llorch_shared.settings import Settings
from llorch_shared.wire.audit import AUDIT_DECODER
from llorch_shared.wire.run import LOCATED_DECODER, Located, RunRecord, decode_run
from llorch_shared.wire.task import TaskRef, TaskState
from llorch_shared.wire.version import Unreadable

RECORDS_MAX: Final = 10_000
"""A task has about five; one that is lost and preempted all the time still has less."""


def why(task: TaskArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """What happened to a task and why: admission and what was predicted, every placement with its candidates, filters
    and score, preemptions, its end, and what was promised against what came of it. Times are milliseconds (ms)."""
    settings = settings_from(config)
    raise typer.Exit(run(lambda: _why(settings, task, as_json=as_json)))


async def _why(settings: Settings, task: str, *, as_json: bool) -> int:
    async with bus_client.connected(settings.nats) as bus:
        told, record = await _read(bus, task)
        waits = await _located(bus, told) if told.state == TaskState.QUEUED else None
    if as_json:
        write_json({"story": told, "verdict": verdict(told), "run": record, "waits": waits})
    else:
        _print(told, waits)
    return Exit.OK


async def _read(bus: Bus, task: str) -> tuple[Story, RunRecord | None]:
    """Raises BusError, and Problem when nothing is known of the task."""
    kept = await bus.replay(streams.AUD, subjects.audits_of_task(task), limit=RECORDS_MAX)
    message = await bus.last(streams.RUN, subjects.run(task))
    record = None if message is None or message.deleted else _readable(message)
    if not kept and record is None:
        raise Problem(
            f"nothing is known of task {task}",
            fix="audit records are kept for 30 days, run records for 72 hours; is the id right?",
        )
    if record is not None:
        record = msgspec.structs.replace(record, request=None)
    return story(task, [AUDIT_DECODER.decode(each.data) for each in kept], record), record


def _readable(message: Message) -> RunRecord:
    try:
        return decode_run(message.data, message.headers)
    except Unreadable as error:
        raise Problem(
            f"the run record cannot be read: {error}", fix="if a newer release wrote it, use its orchctl"
        ) from error


async def _located(bus: Bus, told: Story) -> Located | None:
    """How it stands in its queue now; None when the scheduler does not answer, or does not have it any more."""
    try:
        question = msgspec.json.encode(TaskRef(task_id=told.task_id))
        answer = await bus.request(subjects.locate(subjects.shard_of(told.pool_id)), question)
    except BusError:
        return None
    located = LOCATED_DECODER.decode(answer.data)
    return located if located.found else None


def _print(told: Story, waits: Located | None) -> None:
    OUT.print(f"task {told.task_id}: {told.state or 'its end is kept no longer'}", markup=False)
    for line in told.lines:
        OUT.print(f"{_clock(line.at_ms)}  {line.said}  ({line.actor})", markup=False)
    if waits is not None:
        OUT.print(f"It waits at position {waits.queue_position}, to start in about {waits.predicted_start_ms} ms.")
    for sentence in verdict(told):
        OUT.print(sentence, markup=False)


def _clock(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000).astimezone().isoformat(" ", "milliseconds")[:23]
