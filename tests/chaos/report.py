"""What a run was: faults, operations, violations, and how long it took to recover. Pure."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final

import msgspec

from chaos.evidence import Evidence
from chaos.history import Closed, Ended, Op, Opened, Outcome, Tokens
from chaos.nemesis import Injected
from chaos.plan import FaultKind
from chaos.violations import Violation

SHOWN: Final = 20


class Recovery(msgspec.Struct, frozen=True, kw_only=True):
    """After faults of one kind, milliseconds from the fault (p50, p99): to the next task that was accepted after being
    asked for after the fault, and to the next first token of any stream."""

    made: int
    skipped: int
    accepted_ms: tuple[int, int] | None
    first_token_ms: tuple[int, int] | None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    seed: int
    seconds: float
    kinds: tuple[FaultKind, ...]
    """Those that were wanted."""
    faults: dict[str, Recovery]
    operations: dict[str, int]
    tasks: dict[str, int]
    """By final state; `unknown` never became one."""
    tokens_read: int
    connections: int
    resume_gap_ms: tuple[int, int] | None
    """From the loss of a connection, not by the reader's own will, to the next event of the same reader."""
    violations: tuple[Violation, ...]


def make_report(
    *,
    seed: int,
    seconds: float,
    kinds: Sequence[FaultKind],
    injected: Sequence[Injected],
    evidence: Evidence,
    violations: Sequence[Violation],
) -> Report:
    stories = evidence.stories.values()
    readers = [entries for story in stories for entries in story.readers.values()]
    operations = Counter(f"{answer.what} {answer.outcome}" for story in stories for answer in story.answered)
    states = Counter(str(story.run.state) if story.run is not None else "unknown" for story in stories)
    accepted = sorted(
        (asked.at, answer.at)
        for story in stories
        for asked in story.asked
        for answer in story.answered
        if asked.op == answer.op and answer.what is Op.SUBMIT and answer.outcome is Outcome.ACCEPTED
    )
    firsts = sorted(
        entry.at for entries in readers for entry in entries if isinstance(entry, Tokens) and entry.indices[0] == 0
    )
    return Report(
        seed=seed,
        seconds=seconds,
        kinds=tuple(kinds),
        faults={
            str(kind): _recovery([each for each in injected if each.fault.kind is kind], accepted, firsts)
            for kind in FaultKind
            if any(each.fault.kind is kind for each in injected)
        },
        operations=dict(sorted(operations.items())),
        tasks=dict(sorted(states.items())),
        tokens_read=sum(len(entry.indices) for entries in readers for entry in entries if isinstance(entry, Tokens)),
        connections=sum(isinstance(entry, Opened) for entries in readers for entry in entries),
        resume_gap_ms=percentiles(until - since for since, until in gaps(readers)),
        violations=tuple(violations),
    )


def percentiles(seconds: Iterable[float]) -> tuple[int, int] | None:
    """p50 and p99 in milliseconds, by nearest rank; None of nothing."""
    ordered = sorted(seconds)
    if not ordered:
        return None
    last = len(ordered) - 1
    return (round(ordered[last // 2] * 1000), round(ordered[min(last, int(len(ordered) * 0.99))] * 1000))


def _recovery(made: Sequence[Injected], accepted: Sequence[tuple[float, float]], firsts: Sequence[float]) -> Recovery:
    real = [each for each in made if not each.skipped]
    next_accepted = [min((told for asked, told in accepted if asked >= each.began), default=None) for each in real]
    next_first = [min((at for at in firsts if at >= each.began), default=None) for each in real]
    return Recovery(
        made=len(real),
        skipped=len(made) - len(real),
        accepted_ms=percentiles(
            at - each.began for at, each in zip(next_accepted, real, strict=True) if at is not None
        ),
        first_token_ms=percentiles(
            at - each.began for at, each in zip(next_first, real, strict=True) if at is not None
        ),
    )


def gaps(readers: Iterable[Sequence[object]]) -> Iterable[tuple[float, float]]:
    """When a reader lost its connection, not by its own will, and when it had its next event."""
    for entries in readers:
        lost = 0.0
        for before, entry in pairwise(entries):
            if isinstance(before, Closed) and not before.why.startswith("left") and not lost:
                lost = before.at
            if lost and isinstance(entry, Tokens | Ended):
                yield lost, entry.at
                lost = 0.0


def text(report: Report, again: str = "") -> str:
    """For people, with the command that does it again."""
    lines = [
        f"seed {report.seed}, {report.seconds:g} s",
        "",
        "faults            made  skipped  accepted p50/p99 ms  first token p50/p99 ms",
    ]
    for kind, each in report.faults.items():
        lines.append(
            f"  {kind:<14}{each.made:>6}{each.skipped:>9}{_pair(each.accepted_ms):>21}{_pair(each.first_token_ms):>24}"
        )
    lines += [
        "",
        "operations  " + _counts(report.operations),
        "tasks       " + _counts(report.tasks),
        f"streams     {report.connections} connections, {report.tokens_read} tokens, "
        f"resume gap p50/p99 {_pair(report.resume_gap_ms)} ms",
        "",
        f"violations  {len(report.violations)}" + (": " if report.violations else ""),
    ]
    kinds = Counter(str(violation.kind) for violation in report.violations)
    lines += [f"  {kind}: {count}" for kind, count in kinds.most_common()]
    lines += [f"    {each.kind}  {each.task}  {each.explanation}" for each in report.violations[:SHOWN]]
    if len(report.violations) > SHOWN:
        lines.append(f"    and {len(report.violations) - SHOWN} more, see report.json")
    return "\n".join([*lines, "", f"again       {again or _command(report)}"])


def _command(report: Report) -> str:
    everything = set(report.kinds) == set(FaultKind)
    faults = "all" if everything else ",".join(report.kinds)
    return f"make chaos SEED={report.seed} SECONDS={report.seconds:g} FAULTS={faults}"


def _pair(pair: tuple[int, int] | None) -> str:
    return "-" if pair is None else f"{pair[0]} / {pair[1]}"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "-"
