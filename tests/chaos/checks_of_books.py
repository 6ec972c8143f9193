"""Whether audit, record, token log and counters tell the same. Pure."""

from collections.abc import Iterator
from typing import Final

from chaos import allowed
from chaos.evidence import After, Evidence, Story
from chaos.violations import Kind, Violation
from chaos.words import engine_words
from llorch_shared.states import FINAL
from llorch_shared.wire.audit import AuditEvent, AuditRecord
from llorch_shared.wire.task import TaskState

STARTED: Final = "tasks_started_total"
ENDS: Final = frozenset(AuditEvent(str(state)) for state in FINAL)


def audited_once(story: Story, after: After) -> Iterator[Violation]:
    """Every end is audited once, as what it was and with its tokens."""
    ends = [audit for audit in story.audits if audit.event in ENDS]
    if len(ends) > 1:
        text = f"audited ends: {[(str(audit.event), audit.actor, audit.run_seq) for audit in ends]}"
        yield Violation(kind=Kind.ENDED_TWICE, task=story.task, explanation=text)
    run = story.run
    if run is None or run.state not in FINAL:
        return
    if not ends:
        text = f"{run.state} by {run.node_id or 'a scheduler'}, and no audit record says so"
        yield Violation(kind=Kind.NOT_AUDITED, task=story.task, explanation=text)
    elif str(ends[0].event) != str(run.state):
        text = f"audited as {ends[0].event}, the record is {run.state}"
        yield Violation(kind=Kind.AUDIT_UNTRUE, task=story.task, explanation=text)
    elif (ends[0].pool_id, ends[0].tenant) != (story.pool, story.tenant):
        text = f"audited for {ends[0].pool_id}/{ends[0].tenant}, asked for {story.pool}/{story.tenant}"
        yield Violation(kind=Kind.AUDIT_UNTRUE, task=story.task, explanation=text)
    elif ends[0].detail.get("tokens_out", run.tokens_out) != run.tokens_out:
        text = f"audited with {ends[0].detail['tokens_out']} tokens, the record has {run.tokens_out}"
        yield Violation(kind=Kind.AUDIT_UNTRUE, task=story.task, explanation=text)


def admitted_once(story: Story, after: After) -> Iterator[Violation]:
    """However often and wherever it was sent. None is permitted: see RELIABILITY.md on a killed gateway."""
    admissions = [audit for audit in story.audits if audit.event is AuditEvent.ADMITTED]
    if len(admissions) > 1:
        text = f"admissions: {[(audit.actor, audit.at_ms) for audit in admissions]}"
        yield Violation(kind=Kind.ADMITTED_TWICE, task=story.task, explanation=text)


def the_token_log_is_true(story: Story, after: After) -> Iterator[Violation]:
    """What is stored of the stream is the engine's words, whole for a done task, with one end that is the record's."""
    stored, run = story.stream, story.run
    words = engine_words(story).words
    wrong = [index for index, text in stored.texts.items() if index >= len(words) or text != words[index]]
    if wrong or stored.differing:
        text = f"stored tokens {sorted(wrong)[:5]} are not the engine's, {stored.differing[:5]} are stored differently"
        yield Violation(kind=Kind.LOG_UNTRUE, task=story.task, explanation=text)
    if len(stored.ends) > 1:
        text = f"terminal frames: {stored.ends}"
        yield Violation(kind=Kind.LOG_UNTRUE, task=story.task, explanation=text)
    if run is None or run.state is not TaskState.DONE or allowed.may_be_missing_from_the_log(story, after):
        return
    missing = sorted(set(range(run.tokens_out)) - set(stored.texts))
    if missing:
        text = f"done with {run.tokens_out} tokens, {missing[:5]} are not in the log"
        yield Violation(kind=Kind.LOG_UNTRUE, task=story.task, explanation=text)


def counters_are_true(evidence: Evidence) -> Iterator[Violation]:
    """A node that was never restarted has counted a start for each task it took, but for those no engine began."""
    for counter in evidence.after.counters:
        if counter.metric != STARTED or not counter.whole:
            continue
        node = counter.process.replace("poold-", "node-")
        taken = sum(len(claims_of(story, node)) for story in evidence.stories.values())
        unbegun = sum(
            allowed.starts_that_may_be_uncounted(story) for story in evidence.stories.values() if claims_of(story, node)
        )
        if not taken - unbegun <= counter.value <= taken:
            text = f"{counter.process} counted {counter.value:g} starts; it took {taken}, {unbegun} perhaps not begun"
            yield Violation(kind=Kind.COUNTER_UNTRUE, task="", explanation=text)


def claims_of(story: Story, node: str) -> list[AuditRecord]:
    """When this node took the task."""
    return [audit for audit in story.audits if audit.event is AuditEvent.RUNNING and audit.actor == f"poold/{node}"]


def all_is_at_rest(evidence: Evidence) -> Iterator[Violation]:
    for what in evidence.after.unsettled:
        yield Violation(kind=Kind.UNSETTLED, task="", explanation=what)


def the_record_verifies(evidence: Evidence) -> Iterator[Violation]:
    for what in evidence.after.record_faults:
        yield Violation(kind=Kind.AUDIT_UNTRUE, task="", explanation=what)


def the_protocol_was_kept(evidence: Evidence) -> Iterator[Violation]:
    for story in evidence.stories.values():
        for odd in story.odd:
            yield Violation(kind=Kind.ODD, task=story.task, explanation=odd.what)
