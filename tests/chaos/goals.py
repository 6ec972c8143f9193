"""What a drill must reach, in figures, beyond that the checker finds nothing. Pure."""

from collections.abc import Sequence
from typing import Final

import msgspec

from chaos.evidence import Evidence, Story
from chaos.history import Op, Outcome, Tokens
from chaos.leases import LeaseSeen, Takeover, takeovers
from chaos.nemesis import Injected
from chaos.report import gaps, percentiles
from chaos.run import Planned
from llorch_shared import subjects
from llorch_shared.wire.audit import AuditEvent
from llorch_shared.wire.task import TaskState

RESUME_GAP_MS: Final = 1_000
TAKEOVER_MS: Final = 1_500


class Goal(msgspec.Struct, frozen=True, kw_only=True):
    what: str
    want: str
    got: str
    reached: bool | None = None
    """None: a figure for people, nothing is promised of it."""


def gateways_goals(
    planned: Planned, evidence: Evidence, injected: Sequence[Injected], _: Sequence[LeaseSeen]
) -> list[Goal]:
    """A stream whose node was killed has nothing to send until another node has generated again what was sent. So long
    its reader's gap is the node's, not the gateway's, and is told apart."""
    stories = list(evidence.stories.values())
    node_killed = min((each.began for each in injected if each.fault.target.startswith("poold")), default=0.0)
    resumed: list[float] = []
    paused: list[float] = []
    for story in stories:
        again = _goes_on(story, node_killed) if story.run is not None and story.run.attempt > 1 else node_killed
        paused += [again - node_killed] if again > node_killed else []
        resumed += [until - since for since, until in gaps(story.readers.values()) if not node_killed <= until <= again]
    runs_again = [
        min(begun) - node_killed
        for story in stories
        if (begun := [each.at for each in story.runs_seen if each.state == "running" and each.attempt > 1])
    ]
    return [
        _exactly("streams read to their end", len(planned.asks), sum(map(_done, stories))),
        _within("resume gap, from the loss of a connection to the next event", RESUME_GAP_MS, resumed),
        _told("connections lost", f"{len(resumed)} beside {sum(map(bool, paused))} streams of the killed node"),
        _told("from the kill of a node until another runs its tasks, p50 / p99 ms", _pair(runs_again)),
        _told("until their readers have the next token, p50 / p99 ms", _pair(paused)),
    ]


def real_goals(
    planned: Planned, evidence: Evidence, injected: Sequence[Injected], _: Sequence[LeaseSeen]
) -> list[Goal]:
    """That each text is what it is when nothing is broken is for the checker."""
    stories = [evidence.stories[ask.request.task_id] for ask in planned.asks]
    moved = [story for story in stories if story.run is not None and story.run.attempt > 1]
    return [
        _exactly("streams read to their end", len(planned.asks), sum(map(_done, stories))),
        _exactly(
            "tasks with one admission on the record",
            len(planned.asks),
            [_count(story, AuditEvent.ADMITTED) for story in stories].count(1),
        ),
        _exactly("tasks with one charge", len(planned.asks), sum(len(_charges(story)) == 1 for story in stories)),
        _exactly("faults made", len(planned.faults), sum(not each.skipped for each in injected)),
        _told("streams that went on by another attempt", str(len(moved))),
        _told("tokens compared", str(sum(len(story.words or ()) for story in stories))),
    ]


def _goes_on(story: Story, since: float) -> float:
    """When the reader had its first new token after `since`."""
    seen = [each.at for entries in story.readers.values() for each in entries if isinstance(each, Tokens)]
    return min((at for at in seen if at > since + 0.5), default=since)


def cluster_goals(
    planned: Planned, evidence: Evidence, injected: Sequence[Injected], _: Sequence[LeaseSeen]
) -> list[Goal]:
    """That no task is lost, doubled or has a gap is for the checker, too."""
    stories = [evidence.stories[ask.request.task_id] for ask in planned.asks]
    waits = [
        min(each.at for each in told) - min(each.at for each in story.asked)
        for story in stories
        if (told := story.outcomes(Op.SUBMIT, Outcome.ACCEPTED))
    ]
    return [
        _exactly("streams read to their end", len(planned.asks), sum(map(_done, stories))),
        _exactly(
            "tasks with one admission on the record",
            len(planned.asks),
            [_count(story, AuditEvent.ADMITTED) for story in stories].count(1),
        ),
        _exactly("tasks with one charge", len(planned.asks), sum(len(_charges(story)) == 1 for story in stories)),
        _exactly("faults made", len(planned.faults), sum(not each.skipped for each in injected)),
        _told("until accepted, p50 / p99 ms", _pair(waits)),
        _told("slowest acceptance, ms", str(round(max(waits, default=0) * 1000))),
        _told(
            "tasks with a second attempt", str(sum(each.run is not None and each.run.attempt > 1 for each in stories))
        ),
    ]


def ids_goals(planned: Planned, evidence: Evidence, _: Sequence[Injected], __: Sequence[LeaseSeen]) -> list[Goal]:
    stories = list(evidence.stories.values())
    wanted = len(planned.asks)
    admitted = [_count(story, AuditEvent.ADMITTED) for story in stories]
    charged = [_charges(story) for story in stories]
    return [
        _exactly("tasks with one admission on the record", wanted, admitted.count(1)),
        _exactly("tasks with one result", wanted, sum(map(_done, stories))),
        _exactly("tasks with one charge", wanted, sum(len(each) == 1 for each in charged)),
        _exactly(
            "tokens charged",
            sum(ask.request.max_tokens for ask in planned.asks),
            sum(each[0] for each in charged if len(each) == 1),
        ),
        _told("submissions", str(sum(len(story.asked) for story in stories))),
    ]


def schedulers_goals(
    planned: Planned, evidence: Evidence, injected: Sequence[Injected], seen: Sequence[LeaseSeen]
) -> list[Goal]:
    stories = list(evidence.stories.values())
    kills = [each.began for each in injected if each.fault.target.startswith("scheduler") and not each.skipped]
    found = takeovers(kills, seen)
    leased = [each.leased_s for each in found if each.leased_s is not None]
    placed = _next_placements(found, evidence)
    return [
        _exactly("tasks done", len(planned.asks), sum(map(_done, stories))),
        _exactly("schedulers killed", len(planned.faults), len(kills)),
        _exactly("shards taken over after a kill", len(found), len(leased)),
        _within("takeover, from the kill to the next lease", TAKEOVER_MS, leased),
        _within("takeover, from the kill to the next placement", TAKEOVER_MS, placed),
        _exactly("kills of a scheduler that led", len(kills), len({each.killed for each in found})),
        _told("longest takeover, ms", str(round(max(leased, default=0) * 1000))),
    ]


def _next_placements(found: Sequence[Takeover], evidence: Evidence) -> list[float]:
    """From the kill to the first placement of the successor that was stored for the shard, by it or by the node that
    claimed it; nothing where no task came."""
    placed: dict[int, list[float]] = {}
    for story in evidence.stories.values():
        shard = subjects.shard_of(story.pool)
        first = (each.at for each in story.runs_seen if each.state in ("placed", "running"))
        placed.setdefault(shard, []).extend(first)
    times = []
    for each in found:
        if each.leased_s is not None:
            after = [at - each.killed for at in placed.get(each.shard, ()) if at >= each.killed + each.leased_s]
            times += [min(after)] if after else []
    return times


def _done(story: Story) -> bool:
    return story.run is not None and story.run.state is TaskState.DONE


def _count(story: Story, event: AuditEvent) -> int:
    return sum(audit.event is event for audit in story.audits)


def _charges(story: Story) -> list[int]:
    """Tokens of each record that the task is done."""
    done = [audit.detail.get("tokens_out") for audit in story.audits if audit.event is AuditEvent.DONE]
    return [tokens if isinstance(tokens, int) else 0 for tokens in done]


def _exactly(what: str, want: int, got: int) -> Goal:
    return Goal(what=what, want=f"{want:,}", got=f"{got:,}", reached=want == got)


def _within(what: str, limit_ms: int, seconds: Sequence[float]) -> Goal:
    pair = percentiles(seconds)
    reached = pair is not None and pair[1] <= limit_ms
    return Goal(what=f"{what}, p50 / p99 ms", want=f"p99 ≤ {limit_ms:,}", got=_pair(seconds), reached=reached)


def _told(what: str, got: str) -> Goal:
    return Goal(what=what, want="", got=got)


def _pair(seconds: Sequence[float]) -> str:
    pair = percentiles(seconds)
    return "-" if pair is None else f"{pair[0]:,} / {pair[1]:,}"
