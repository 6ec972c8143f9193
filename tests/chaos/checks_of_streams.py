"""Whether every reader saw the engine's words, each once and in order, and an end that is true. Pure."""

from collections.abc import Iterator, Sequence

from chaos import allowed
from chaos.evidence import After, ReaderEntry, Story
from chaos.history import Ended, Op, Opened, Outcome, Restarted, Tokens
from chaos.violations import Kind, Violation
from chaos.words import engine_words
from llorch_shared.states import FINAL
from llorch_shared.wire.task import TaskState


def each_token_once(story: Story, after: After) -> Iterator[Violation]:
    """Over all its connections, a reader gets 0, 1, 2 … without a gap or a repeat."""
    for reader, entries in story.readers.items():
        indices = (index for entry in entries if isinstance(entry, Tokens) for index in entry.indices)
        for expected, index in enumerate(indices):
            if index != expected:
                kind = Kind.GAP if index > expected else Kind.DOUBLED
                text = f"reader {reader} got {index} where {expected} was due"
                yield Violation(kind=kind, task=story.task, explanation=text)
                break


def the_engines_words(story: Story, after: After) -> Iterator[Violation]:
    words = engine_words(story).words
    for reader, entries in story.readers.items():
        for index, text in _seen(entries):
            if index >= len(words) or text != words[index]:
                said = words[index] if index < len(words) else None
                explanation = f"reader {reader} got {text!r} at {index}, the engine said {said!r}"
                yield Violation(kind=Kind.WRONG_TEXT, task=story.task, explanation=explanation)
                break


def restarts_are_told(story: Story, after: After) -> Iterator[Violation]:
    """Where the output began anew every reader is told so, between the tokens, and its end and the record say it again.
    Whoever comes back behind that place may be told once more."""
    anew = engine_words(story).anew
    for reader, entries in story.readers.items():
        told: set[int] = set()
        due = 0
        for entry in entries:
            if isinstance(entry, Restarted):
                told.add(entry.index)
                if entry.index > due or entry.index not in anew:
                    text = f"reader {reader} was told of a restart at {entry.index}, at token {due}; it was at {anew}"
                    yield Violation(kind=Kind.RESTART_UNTOLD, task=story.task, explanation=text)
            elif isinstance(entry, Tokens) and entry.indices:
                due = entry.indices[-1] + 1
                if missed := [index for index in anew if index < due and index not in told]:
                    text = f"reader {reader} got token {due - 1} and was not told of a restart at {missed}"
                    yield Violation(kind=Kind.RESTART_UNTOLD, task=story.task, explanation=text)
                    break
    run = story.run
    if run is None or run.state is not TaskState.DONE or allowed.may_have_been_told_to_nobody(story, after):
        return
    if run.restarted_at != max(anew, default=None):
        text = f"the record says {run.restarted_at}; the output began anew at {anew}"
        yield Violation(kind=Kind.RESTART_UNTOLD, task=story.task, explanation=text)


def nothing_after_the_end(story: Story, after: After) -> Iterator[Violation]:
    for reader, entries in story.readers.items():
        ends = [number for number, entry in enumerate(entries) if isinstance(entry, Ended)]
        if ends and ends[0] != len(entries) - 1:
            text = f"reader {reader} got {entries[ends[0] + 1]} after the end"
            yield Violation(kind=Kind.AFTER_END, task=story.task, explanation=text)


def ends_are_true(story: Story, after: After) -> Iterator[Violation]:
    """Every reader of an ended task has its end, and it says what the record says."""
    run = story.run
    if run is None or run.state not in FINAL:
        return
    for reader, entries in story.readers.items():
        ended = next((entry for entry in entries if isinstance(entry, Ended)), None)
        if ended is None:
            text = f"reader {reader} has no terminal event, the record is {run.state}"
            yield Violation(kind=Kind.WITHOUT_END, task=story.task, explanation=text)
            continue
        if allowed.may_end_without_its_tokens(story, ended, after):
            continue
        said: tuple[object, ...] = (ended.finish_reason, ended.code, ended.restarted_at)
        if run.state in (TaskState.DONE, TaskState.CANCELLED):
            told: tuple[object, ...] = (run.finish_reason, "", run.restarted_at)
        else:
            told = ("", str(run.error.code) if run.error else "", None)
        if said != told or (not ended.code and ended.tokens_out != run.tokens_out):
            text = f"reader {reader}: {ended}; record {run.state} {told}, {run.tokens_out} tokens"
            yield Violation(kind=Kind.END_UNTRUE, task=story.task, explanation=text)


def ends_count_what_was_sent(story: Story, after: After) -> Iterator[Violation]:
    for reader, entries in story.readers.items():
        ended = next((entry for entry in entries if isinstance(entry, Ended)), None)
        if ended is None or ended.code:
            continue
        seen = len(_seen(entries))
        text = f"reader {reader} got {seen} tokens, its end counts {ended.tokens_out}"
        if seen > ended.tokens_out and not allowed.may_count_fewer_than_was_seen(story, after):
            yield Violation(kind=Kind.EXTRA, task=story.task, explanation=text)
        if seen < ended.tokens_out and not allowed.may_show_fewer_than_its_end_counts(story):
            yield Violation(kind=Kind.SHORT, task=story.task, explanation=text)


def nothing_after_a_receipt(story: Story, after: After) -> Iterator[Violation]:
    """The gateway that confirmed a cancel sends no more tokens of it on streams that were open already. Other gateways
    may be stopped or slow with tokens that were sent before; that the engine itself has stopped is checked by
    `receipts_are_true`."""
    if story.run is None or story.run.state is not TaskState.CANCELLED:
        return
    receipts = {answer.via: answer.at for answer in reversed(story.outcomes(Op.CANCEL, Outcome.RECEIPT))}
    for reader, entries in story.readers.items():
        opened: Opened | None = None
        for entry in entries:
            if isinstance(entry, Opened):
                opened = entry
            elif isinstance(entry, Tokens) and opened is not None and opened.via in receipts:
                at = receipts[opened.via]
                if opened.at < at and entry.until > at + allowed.DELIVERY_S:
                    text = (
                        f"reader {reader} got token {entry.indices[-1]} from {opened.via} "
                        f"{entry.until - at:.3f} s after its receipt"
                    )
                    yield Violation(kind=Kind.AFTER_RECEIPT, task=story.task, explanation=text)
                    break


def _seen(entries: Sequence[ReaderEntry]) -> list[tuple[int, str]]:
    return [
        pair for entry in entries if isinstance(entry, Tokens) for pair in zip(entry.indices, entry.texts, strict=True)
    ]
