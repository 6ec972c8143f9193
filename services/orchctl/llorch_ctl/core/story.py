"""The life of one task in sentences, from its audit records and its run record. Pure.

What a record says is told as it stands; facts that have no sentence of their own follow it as `name value`, so that
nothing a service put on the record is left out.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from llorch_shared.states import FINAL
from llorch_shared.wire.audit import AuditEvent, AuditRecord
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.task import TaskState

RATIO_FROM_MS: Final = 1_000
"""Of a shorter wait a part says nothing: five milliseconds in place of none are 100 %."""

Facts = dict[str, Any]
"""Details of a record that are not told yet: each sentence takes what it tells."""


class Line(msgspec.Struct, frozen=True, kw_only=True):
    at_ms: int
    """Unix milliseconds."""
    event: str
    actor: str
    said: str


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """What was promised against what came of it; None where it is not known."""

    predicted_start_ms: int | None = None
    """From admission, as told at admission."""
    real_start_ms: int | None = None
    """From admission until an engine first had it."""
    error_ratio: float | None = None
    """|real - predicted| / real."""
    on_time_probability: float | None = None
    """As told at admission, else as seen when it was placed."""
    deadline_ms: int | None = None
    """Budget from admission."""
    took_ms: int | None = None
    """From admission to its end."""
    on_time: bool | None = None


class Story(msgspec.Struct, frozen=True, kw_only=True):
    task_id: str
    state: str
    """Of the run record; `queued` where there is none yet, empty where it is kept no longer."""
    pool_id: str
    lines: list[Line]
    forecast: Forecast
    preemptions: int
    requeues: int
    attempts: int


def story(task_id: str, records: Sequence[AuditRecord], run: RunRecord | None) -> Story:
    """In the order of the run record's versions, which is that of what happened: the clocks of two machines, or of a
    writer that was busy, are not. With neither records nor a run there is nothing to tell."""
    ordered = sorted(records, key=_when)
    lines = [
        Line(at_ms=record.at_ms, event=record.event, actor=record.actor, said=sentence(record)) for record in ordered
    ]
    return Story(
        task_id=task_id,
        state=_state(ordered, run),
        pool_id=run.pool_id if run is not None else next((each.pool_id for each in ordered if each.pool_id), ""),
        lines=lines,
        forecast=_forecast(ordered, run),
        preemptions=max(_attempts(ordered, AuditEvent.PREEMPTED), run.preemptions if run is not None else 0),
        requeues=_attempts(ordered, AuditEvent.REQUEUED),
        attempts=max([run.attempt if run is not None else 0, *(record.attempt for record in ordered)], default=0),
    )


def _when(record: AuditRecord) -> tuple[int, bool, int]:
    """A placement may go ahead of any run record, but not of the admission."""
    return record.run_seq, record.event is not AuditEvent.ADMITTED, record.at_ms


def sentence(record: AuditRecord) -> str:
    """What one record says."""
    facts: Facts = dict(record.detail)
    said = _SENTENCES[record.event](record, facts) if record.event in _SENTENCES else record.event
    rest = [f"{name} {_plain(value)}" for name, value in facts.items() if value not in ("", [], ())]
    return f"{said} [{', '.join(rest)}]" if rest else said


def verdict(told: Story) -> list[str]:
    """What was promised, and what came of it."""
    found = told.forecast
    said = []
    if found.predicted_start_ms is not None and found.real_start_ms is not None:
        ratio = found.error_ratio if found.real_start_ms >= RATIO_FROM_MS else None
        off = "" if ratio is None else f" ({100 * ratio:.0f} % off)"
        said.append(
            f"It was told to start after {found.predicted_start_ms} ms and did after {found.real_start_ms}{off}."
        )
    elif found.predicted_start_ms is not None:
        said.append(f"It was told to start after {found.predicted_start_ms} ms; no start is on the record.")
    if found.deadline_ms is not None and found.took_ms is not None:
        kept = "in time" if found.on_time else "too late"
        said.append(f"Its deadline was {found.deadline_ms} ms after admission; it ended after {found.took_ms}: {kept}.")
    if found.on_time_probability is not None:
        said.append(f"Its chance to be in time was told as {found.on_time_probability:.2f}.")
    if told.preemptions or told.requeues:
        said.append(f"It was preempted {_times(told.preemptions)} and queued again {_times(told.requeues)}.")
    return said


def _admitted(record: AuditRecord, facts: Facts) -> str:
    through = f" through {record.channel}" if record.channel else ""
    who = f" for {record.identity}" if record.identity else ""
    priority = _word(facts, "priority")
    tenant = f", tenant {record.tenant}" if record.tenant else ""
    said = f"admitted to pool {record.pool_id}{through}{who}"
    said += f" as {priority}{tenant}" if priority else tenant
    if (weight := facts.pop("weight", None)) is not None:
        said += f" (weight {_plain(weight)})"
    if (deadline_ms := facts.pop("deadline_ms", None)) is not None:
        said += f", to end within {_plain(deadline_ms)} ms"
    return f"{said}; {told}" if (told := _told(facts)) else said


def _told(facts: Facts) -> str:
    """What a client was promised."""
    position, start_ms = facts.pop("queue_position", None), facts.pop("predicted_start_ms", None)
    told = f"told position {position}, start in {start_ms} ms" if position is not None or start_ms is not None else ""
    if (chance := facts.pop("on_time_probability", None)) is not None:
        told += f"{', ' if told else ''}in time with {chance:.2f}"
    return told


def _placed(record: AuditRecord, facts: Facts) -> str:
    said = f"placed on {record.replica_id} (attempt {record.attempt})"
    if (waited_ms := facts.pop("waited_ms", None)) is not None:
        said += f" {waited_ms} ms after its admission"
    _told(facts)
    if (considered := facts.pop("candidates_considered", None)) is not None:
        said += f": {considered} {'replica was' if considered == 1 else 'replicas were'} looked at"
        removed = facts.pop("filters_applied", None)
        said += f", {_list(removed)} removed" if removed else ", none removed"
    if score := _score(facts):
        said += f"; score of the chosen one: {score}"
    if reason := _word(facts, "decision_reason"):
        said += f"; decided by {reason}"
    if ties := facts.pop("tie_breakers_applied", None):
        said += f", after {_list(ties)}"
    if facts.pop("pinned", False):
        said += "; pinned by the client"
    if facts.pop("fallback_used", False):
        said += "; none of the preferred pools could take it"
    if passed := _word(facts, "passed_over"):
        said += f"; its deadline let it pass the {passed} task whose turn it was"
    return said


def _score(facts: Facts) -> str:
    parts = []
    if end_ms := facts.pop("predicted_end_ms", 0):
        parts.append(f"ends in {end_ms:.0f} ms")
    if (expected_ms := facts.pop("expected_ms", None)) is not None:
        parts.append(f"slot time {expected_ms} ms expected")
    if free := facts.pop("free_vram_mb", 0):
        parts.append(f"{free} MiB of VRAM free")
    if (slots := facts.pop("active_slots", None)) is not None:
        parts.append(f"{slots} {'slot' if slots == 1 else 'slots'} taken")
    if version := _word(facts, "replica_set"):
        parts.append(f"replica set {version}")
    if (warm := facts.pop("kv_warmth", None)) is not None:
        parts.append("its session's cache is there" if warm else "its session's cache is elsewhere")
    return ", ".join(parts)


def _running(record: AuditRecord, _facts: Facts) -> str:
    return f"claimed and begun on {record.replica_id} (attempt {record.attempt})"


def _id_in_use(record: AuditRecord, _facts: Facts) -> str:
    return f"tenant {record.tenant} queued a task under this id in pool {record.pool_id} and was refused"


def _requeued(record: AuditRecord, facts: Facts) -> str:
    reason = _word(facts, "reason") or "no reason given"
    return f"taken back and queued again at the front (attempt {record.attempt}): {reason}"


def _preempted(record: AuditRecord, facts: Facts) -> str:
    said = f"stopped on {record.replica_id} for more urgent work"
    if urgent := _word(facts, "urgent_task_id"):
        said += f", task {urgent}"
    if (resume := facts.pop("resume_from", None)) is not None:
        said += f"; it goes on later from token {resume}"
    if (stop_ms := facts.pop("stop_ms", None)) is not None:
        said += f"; its slot was free after {stop_ms} ms"
    return said


def _done(record: AuditRecord, facts: Facts) -> str:
    return f"done on {record.replica_id}: {_work(facts)}"


def _ended(record: AuditRecord, facts: Facts) -> str:
    """An end without success."""
    said = str(record.event)
    if record.replica_id:
        said += f" on {record.replica_id}"
    reason = _word(facts, "reason")
    code = _word(facts, "error_code") or _word(facts, "error")
    label = _word(facts, "policy_label")
    why = " / ".join(each for each in (reason, code if code != reason else "", label) if each)
    said += f": {why}" if why else ""
    cancel_ms = facts.pop("cancel_ms", None)
    said += f", {cancel_ms} ms after the wish" if cancel_ms is not None else ""
    return f"{said}; {work}" if (work := _work(facts)) else said


def _work(facts: Facts) -> str:
    tokens_in, tokens = facts.pop("tokens_in", None), facts.pop("tokens_out", None)
    decode_ms, reason = facts.pop("decode_ms", None), _word(facts, "finish_reason")
    if tokens is None:
        return reason
    said = f"{tokens} tokens in {decode_ms} ms" if decode_ms is not None else f"{tokens} tokens"
    said += f" from a prompt of {tokens_in}" if tokens_in else ""
    return f"{said} ({reason})" if reason else said


def _set_aside(_record: AuditRecord, facts: Facts) -> str:
    """Its message, that is: the task's own end stands beside it."""
    facts.pop("reason", None)
    place = f"message {facts.pop('stream_seq', '?')} of {_word(facts, 'stream')}"
    return f"its {_word(facts, 'what')}, {place}, was set aside as dead letter {facts.pop('letter', '?')}: " + _word(
        facts, "problem"
    )


_SENTENCES: Final[dict[AuditEvent, Callable[[AuditRecord, Facts], str]]] = {
    AuditEvent.ADMITTED: _admitted,
    AuditEvent.PLACED: _placed,
    AuditEvent.RUNNING: _running,
    AuditEvent.REQUEUED: _requeued,
    AuditEvent.PREEMPTED: _preempted,
    AuditEvent.ID_IN_USE: _id_in_use,
    AuditEvent.DEAD_LETTERED: _set_aside,
    AuditEvent.DONE: _done,
    AuditEvent.FAILED: _ended,
    AuditEvent.CANCELLED: _ended,
    AuditEvent.EXPIRED: _ended,
    AuditEvent.DROPPED: _ended,
}
_ENDS: Final = frozenset(
    {AuditEvent.DONE, AuditEvent.FAILED, AuditEvent.CANCELLED, AuditEvent.EXPIRED, AuditEvent.DROPPED}
)


def _state(records: Sequence[AuditRecord], run: RunRecord | None) -> str:
    if run is not None:
        return run.state
    ends = [record.event for record in records if record.event in _ENDS]
    if ends:
        return ends[-1]
    moved = {AuditEvent.PLACED, AuditEvent.RUNNING}
    return TaskState.QUEUED if records and not any(record.event in moved for record in records) else ""


def _forecast(records: Sequence[AuditRecord], run: RunRecord | None) -> Forecast:
    admitted = next((record for record in records if record.event is AuditEvent.ADMITTED), None)
    told = admitted.detail if admitted is not None else {}
    admitted_ms = (run.admitted_ms if run is not None else 0) or (admitted.at_ms if admitted is not None else 0)
    started_ms = next((record.at_ms for record in records if record.event is AuditEvent.RUNNING), 0)
    if not started_ms and run is not None:
        started_ms = run.started_ms
    ended_ms = next((record.at_ms for record in reversed(records) if record.event in _ENDS), 0)
    if run is not None and run.state in FINAL:
        ended_ms = run.ended_ms or ended_ms
    predicted = _number(told.get("predicted_start_ms"))
    if predicted is None and run is not None:
        predicted = run.predicted_start_ms
    real = started_ms - admitted_ms if started_ms and admitted_ms else None
    chance = told.get("on_time_probability")
    if chance is None and run is not None:
        chance = run.on_time_probability
    deadline = _number(told.get("deadline_ms"))
    took = ended_ms - admitted_ms if ended_ms and admitted_ms else None
    return Forecast(
        predicted_start_ms=predicted,
        real_start_ms=real,
        error_ratio=round(abs(real - predicted) / real, 3) if real and real > 0 and predicted is not None else None,
        on_time_probability=float(chance) if isinstance(chance, int | float) else None,
        deadline_ms=deadline,
        took_ms=took,
        on_time=took <= deadline if took is not None and deadline is not None else None,
    )


def _attempts(records: Sequence[AuditRecord], event: AuditEvent) -> int:
    """Attempts to which it happened: both the node and the scheduler put some events on the record."""
    return len({record.attempt for record in records if record.event is event})


def _times(count: int) -> str:
    return {0: "never", 1: "once"}.get(count, f"{count} times")


def _number(value: object) -> int | None:
    return round(value) if isinstance(value, int | float) else None


def _word(facts: Facts, name: str) -> str:
    return str(facts.pop(name, ""))


def _list(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _plain(value: object) -> str:
    return _list(value) if isinstance(value, list | tuple) else f"{value:g}" if isinstance(value, float) else str(value)
