"""The checker: every check over everything that is known. Pure; it does not know which faults were made."""

from collections.abc import Callable, Iterator
from typing import Final

from chaos import checks_of_books as books
from chaos import checks_of_streams as streams
from chaos import checks_of_tasks as tasks
from chaos.evidence import After, Evidence, Story
from chaos.violations import Violation

OF_TASKS: Final[tuple[Callable[[Story, After], Iterator[Violation]], ...]] = (
    tasks.kept,
    tasks.ended_once,
    tasks.never_refused_later,
    tasks.failed_for_a_reason,
    tasks.cancelled_for_a_reason,
    tasks.times_are_true,
    tasks.receipts_are_true,
    tasks.run_to_one_result,
    streams.each_token_once,
    streams.the_engines_words,
    streams.restarts_are_told,
    streams.nothing_after_the_end,
    streams.ends_are_true,
    streams.ends_count_what_was_sent,
    streams.nothing_after_a_receipt,
    books.admitted_once,
    books.audited_once,
    books.the_token_log_is_true,
)
OF_ALL: Final[tuple[Callable[[Evidence], Iterator[Violation]], ...]] = (
    books.counters_are_true,
    books.all_is_at_rest,
    books.the_record_verifies,
    books.the_protocol_was_kept,
)


def check(evidence: Evidence) -> list[Violation]:
    """All violations, by kind and task."""
    found = [violation for each in OF_ALL for violation in each(evidence)]
    for story in evidence.stories.values():
        found += [violation for each in OF_TASKS for violation in each(story, evidence.after)]
    return sorted(found)
