"""What looks wrong and is permitted, each with its reason. Nothing else in the checker makes an exception.

The checker does not know the faults: every permission here rests on what the history or the bus itself shows.
"""

from collections.abc import Sequence
from typing import Final

from chaos.evidence import After, ReaderEntry, Story
from chaos.history import Asked, Closed, Ended, Op, Opened, Outcome, Tokens
from llorch_shared.errors import ErrorCode, ResetDetail
from llorch_shared.states import FINAL
from llorch_shared.wire.audit import AuditEvent
from llorch_shared.wire.task import Determinism, Failover, OutputMode, TaskState

ATTEMPTS_MAX: Final = 3
"""The scheduler's default: a task that loses this many engines ends with WORKER_RESET, so that it kills no more."""
GRACE_S: Final = 9.5
"""A stream whose readers have all been away nearly this long may be cancelled (`cancel_grace_ms` is 10 s)."""
DELIVERY_S: Final = 0.25
"""What a gateway had written before its receipt may still lie in another socket of the same client this long."""
CLOCK_S: Final = 0.002
"""Records hold whole milliseconds."""
DOUBT_S: Final = 0.5
"""Each process takes the time from the bus, with this much doubt at most."""
TIMES_S: Final = 2.0
"""There are several of them."""

FRAMES_GONE: Final = "no longer kept"


def may_be_missing_from_the_log(story: Story, after: After) -> bool:
    """The token log is memory. When the server has been restarted since the task was admitted, a node that was
    restarted too, or whose copy was too old (60 s), cannot publish the task's frames again."""
    admitted = min((asked.at for asked in story.asked if asked.what is Op.SUBMIT), default=0.0)
    return after.tokens_since > admitted


def may_have_been_told_to_nobody(story: Story, after: After) -> bool:
    """Where the output began anew follows from what was told. Nobody read it, and the log has lost it since."""
    return not any(story.readers.values()) and not story.stream.texts and may_be_missing_from_the_log(story, after)


def may_end_without_its_tokens(story: Story, ended: Ended, after: After) -> bool:
    """The same loss as a reader meets it: a typed error that says so, and the task's result is untouched."""
    return FRAMES_GONE in ended.message and may_be_missing_from_the_log(story, after)


def may_have_failed(story: Story, after: After) -> bool:
    """For having lost its engine or node too often; being preempted does not count. Or because it may not, or cannot,
    go on after one loss: see `_may_not_go_on`."""
    run = story.run
    if run is None or run.error is None or run.error.code is not ErrorCode.WORKER_RESET:
        return False
    return run.attempt - run.preemptions >= ATTEMPTS_MAX or (run.attempt > 1 and _may_not_go_on(story, after))


def _may_not_go_on(story: Story, after: After) -> bool:
    """It asked for that, its output is bound to a schema, or what was sent of a sampled one is gone with the server's
    memory. The error says which."""
    run, request = story.run, story.request
    assert run is not None
    assert run.error is not None
    if request is None:
        return False
    match run.error.detail:
        case ResetDetail.FAILOVER_FAIL:
            return request.failover is Failover.FAIL
        case ResetDetail.FAILOVER_REFUSED:
            resumes = request.failover is Failover.RESUME and request.output_mode is not OutputMode.TEXT
            return resumes and request.determinism is not Determinism.STRICT
        case ResetDetail.TOKENS_LOST:
            strict = request.determinism is Determinism.STRICT and request.failover is not Failover.FAIL
            return not strict and may_be_missing_from_the_log(story, after)
    return False


def may_be_done_without_a_whole_generation(story: Story) -> bool:
    """A sampled task whose engine was lost when it had said everything: nothing was left to ask for."""
    run, request = story.run, story.request
    if run is None or request is None or request.determinism is Determinism.STRICT or run.attempt < 2:
        return False
    told = [set(story.stream.texts), *(_indices(entries) for entries in story.readers.values())]
    all_tokens = set(range(run.tokens_out))
    return run.tokens_out - (run.restarted_at or 0) == request.max_tokens and any(all_tokens <= each for each in told)


def _indices(entries: Sequence[ReaderEntry]) -> set[int]:
    return {index for entry in entries if isinstance(entry, Tokens) for index in entry.indices}


def may_be_cancelled(story: Story) -> bool:
    """Somebody asked for it, or its readers were all away for the time of grace."""
    if any(asked.what is Op.CANCEL for asked in story.asked):
        return True
    return longest_absence_s(story) >= GRACE_S


def longest_absence_s(story: Story) -> float:
    """The longest time before its end without any open connection after the first was open, seconds."""
    end = story.run.ended_ms / 1000 if story.run is not None else 0.0
    moves: list[tuple[float, int]] = []
    for entries in story.readers.values():
        is_open = False
        for entry in entries:
            if isinstance(entry, Opened) and not is_open:
                moves.append((entry.at, 1))
                is_open = True
            elif isinstance(entry, Closed | Ended) and is_open:
                moves.append((entry.at, -1))
                is_open = False
    here, left_at, longest = 0, None, 0.0
    for at, change in sorted(moves, key=lambda move: move[0]):
        if change > 0 and here == 0 and left_at is not None:
            longest = max(longest, min(at, end) - left_at)
        here += change
        if here == 0:
            left_at = at
    if here == 0 and left_at is not None:
        longest = max(longest, end - left_at)
    return longest


def may_lie_among_the_placements(state: TaskState | None) -> bool:
    """The placement of an ended task, which a server that was killed or had a full disk has brought back. Nobody can
    claim it, nobody takes it while the node lives, and it expires within the hour (`PLACEMENT_TTL_S`)."""
    return state in FINAL


def starts_that_may_be_uncounted(story: Story) -> int:
    """`tasks_started_total` counts what an engine began to answer, the audit what a node took: a task may be cancelled
    or lose its engine in between."""
    taken = sum(audit.event is AuditEvent.RUNNING for audit in story.audits)
    return max(0, taken - sum(generation.sent > 0 for generation in story.generations))


def may_be_refused(story: Story, asked: Asked) -> bool:
    """Asked before anybody was told that the task is accepted: two gateways at once may answer differently."""
    told = [answer.at for answer in story.outcomes(Op.SUBMIT, Outcome.ACCEPTED)]
    return not told or asked.at < min(told)


def may_count_fewer_than_was_seen(story: Story, after: After) -> bool:
    """A scheduler that ends the task of a lost node counts what the token log holds. Of a log that was lost with the
    server's memory it counts nothing, although readers had tokens."""
    return story.run is not None and not story.run.incarnation and may_be_missing_from_the_log(story, after)


def may_show_fewer_than_its_end_counts(story: Story) -> bool:
    """A cancelled stream: gateways hold tokens back from the wish on, and discard them at the end."""
    return story.run is not None and story.run.finish_reason == "cancelled"
