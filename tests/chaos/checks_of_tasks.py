"""Whether each task was kept, ended once, ended for a reason, and was run as its record says. Pure."""

from collections.abc import Iterator
from itertools import pairwise
from math import inf

from chaos import allowed
from chaos.evidence import After, Story
from chaos.history import Op, Outcome, Turned
from chaos.violations import Kind, Violation
from llorch_shared.states import FINAL
from llorch_shared.wire.task import TaskState


def kept(story: Story, after: After) -> Iterator[Violation]:
    """What was accepted, and whatever else got a record, has ended."""
    if story.run is None:
        if story.accepted:
            yield Violation(kind=Kind.LOST, task=story.task, explanation="accepted, and no run record")
    elif story.run.state not in FINAL:
        yield Violation(kind=Kind.LOST, task=story.task, explanation=f"still {story.run.state}")


def ended_once(story: Story, after: After) -> Iterator[Violation]:
    """The first final record seen is the last change of all."""
    changes = sorted(story.runs_seen, key=lambda seen: seen.seq)
    for number, seen in enumerate(changes):
        later = [other for other in changes[number + 1 :] if other.seq != seen.seq]
        if seen.state in FINAL and later:
            text = f"{seen.state} at {seen.seq}, then {later[0].state} at {later[0].seq}"
            yield Violation(kind=Kind.ENDED_TWICE, task=story.task, explanation=text)
            return


def never_refused_later(story: Story, after: After) -> Iterator[Violation]:
    """A task that was accepted is known everywhere, and its queue does not throw it out."""
    if not story.accepted:
        return
    told = min(answer.at for answer in story.outcomes(Op.SUBMIT, Outcome.ACCEPTED))
    asked = {each.op: each for each in story.asked}
    for answer in story.outcomes(Op.SUBMIT, Outcome.REFUSED):
        if not allowed.may_be_refused(story, asked[answer.op]):
            text = f"{answer.via} answered {answer.status} {answer.code} {answer.at - told:.3f} s after the acceptance"
            yield Violation(kind=Kind.REFUSED_LATER, task=story.task, explanation=text)
    for answer in story.outcomes(Op.CANCEL, Outcome.REFUSED):
        text = f"{answer.via} answered a cancel with {answer.status} {answer.code}"
        yield Violation(kind=Kind.REFUSED_LATER, task=story.task, explanation=text)
    for entry in (entry for entries in story.readers.values() for entry in entries if isinstance(entry, Turned)):
        if 400 <= entry.status < 500 and entry.status != 429:
            text = f"{entry.via} turned a reader away with {entry.status} {entry.code}"
            yield Violation(kind=Kind.REFUSED_LATER, task=story.task, explanation=text)
    if story.run is not None and story.run.state in (TaskState.DROPPED, TaskState.EXPIRED):
        text = f"{story.run.state}: {story.run.error}"
        yield Violation(kind=Kind.REFUSED_LATER, task=story.task, explanation=text)


def failed_for_a_reason(story: Story, after: After) -> Iterator[Violation]:
    run = story.run
    if run is not None and run.state is TaskState.FAILED and not allowed.may_have_failed(story, after):
        text = f"attempt {run.attempt}: {run.error}"
        yield Violation(kind=Kind.FAILED_WITHOUT_CAUSE, task=story.task, explanation=text)


def cancelled_for_a_reason(story: Story, after: After) -> Iterator[Violation]:
    run = story.run
    if run is not None and run.state is TaskState.CANCELLED and not allowed.may_be_cancelled(story):
        text = f"nobody asked; its readers were away for at most {allowed.longest_absence_s(story):.1f} s"
        yield Violation(kind=Kind.CANCELLED_UNASKED, task=story.task, explanation=text)


def times_are_true(story: Story, after: After) -> Iterator[Violation]:
    """What is written down was after the task was asked for and not after its end was seen, in the order in which it
    happened. By the clock of the bus, whatever those of the processes say."""
    run = story.run
    if run is None or not story.asked:
        return
    first = min(asked.at for asked in story.asked) - allowed.TIMES_S
    seen = [change.at for change in story.runs_seen if change.state in FINAL]
    last = min(seen) + allowed.TIMES_S if seen else inf
    told = [
        ("admitted", run.admitted_ms),
        ("placed", run.placed_ms),
        ("started", run.started_ms),
        ("ended", run.ended_ms),
    ]
    happened = [(what, ms / 1000) for what, ms in told if ms]
    said = [(f"{audit.event} by {audit.actor}", audit.at_ms / 1000) for audit in story.audits if audit.at_ms]
    for what, at in happened + said:
        if not first <= at <= last:
            text = f"{what}: {at - first - allowed.TIMES_S:.3f} s after the task was asked for"
            yield Violation(kind=Kind.TIME_UNTRUE, task=story.task, explanation=text)
    for (before, earlier), (what, at) in pairwise(happened):
        if at < earlier - allowed.TIMES_S:
            text = f"{what} {earlier - at:.3f} s before it was {before}"
            yield Violation(kind=Kind.TIME_UNTRUE, task=story.task, explanation=text)


def receipts_are_true(story: Story, after: After) -> Iterator[Violation]:
    """When a cancel is confirmed, the record is final and no engine works for the task."""
    receipts = story.outcomes(Op.CANCEL, Outcome.RECEIPT)
    if not receipts:
        return
    at = min(answer.at for answer in receipts) + allowed.CLOCK_S
    run = story.run
    if run is None or run.state not in FINAL or run.ended_ms / 1000 > at:
        text = f"confirmed at {at:.3f}, the record is {run.state if run else None} at {run.ended_ms if run else None}"
        yield Violation(kind=Kind.RECEIPT_UNTRUE, task=story.task, explanation=text)
    for generation in story.generations:
        if generation.began > at or (generation.ended is not None and generation.ended > at):
            text = (
                f"confirmed at {at:.3f}; engine {generation.engine} generated from {generation.began:.3f} "
                f"to {generation.ended or 0:.3f}, {generation.sent} of {generation.total} tokens"
            )
            yield Violation(kind=Kind.RUNS_ON, task=story.task, explanation=text)


def run_to_one_result(story: Story, after: After) -> Iterator[Violation]:
    """Attempts lead to an equally long result, a done task was generated whole, and none was begun and finished after
    the end."""
    run = story.run
    if story.words is not None:
        yield from _as_long_as_when_it_was_quiet(story.words, story)
        return
    kinds = {(generation.seed, generation.tokens) for generation in story.generations}
    if len(kinds) > 1:
        text = f"(seed, tokens) of its attempts: {sorted(kinds)}"
        yield Violation(kind=Kind.UNEQUAL_RUNS, task=story.task, explanation=text)
    if run is None or run.state not in FINAL:
        return
    whole = [generation for generation in story.generations if generation.whole]
    result = run.tokens_out - (run.restarted_at or 0)
    generated = any(generation.tokens == result for generation in whole)
    if run.state is TaskState.DONE and not (generated or allowed.may_be_done_without_a_whole_generation(story)):
        text = f"done with {result} tokens; engines finished {[generation.tokens for generation in whole]}"
        yield Violation(kind=Kind.NOT_RUN, task=story.task, explanation=text)
    final_at = run.ended_ms / 1000
    seen_at = min((seen.at for seen in story.runs_seen if seen.state in FINAL), default=final_at)
    final_at = max(final_at, min(seen_at, final_at + allowed.DOUBT_S))
    for generation in whole:
        if generation.began > final_at + allowed.CLOCK_S:
            text = f"final at {run.ended_ms}; engine {generation.engine} began at {generation.began:.3f} and finished"
            yield Violation(kind=Kind.RAN_AFTER_END, task=story.task, explanation=text)


def _as_long_as_when_it_was_quiet(words: list[str], story: Story) -> Iterator[Violation]:
    """A real engine keeps no log of its runs."""
    run = story.run
    if run is not None and run.state is TaskState.DONE and run.tokens_out != len(words):
        text = f"done with {run.tokens_out} tokens; the engine says {len(words)} to the same request"
        yield Violation(kind=Kind.NOT_RUN, task=story.task, explanation=text)
