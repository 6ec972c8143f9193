"""All that the checker knows, by task: what clients wrote down, what engines wrote down, and what the bus holds after.

`After` is stored beside the history, so that a run can be judged again from its folder alone.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from chaos import history
from chaos.asks import prompt_of
from chaos.history import Answered, Asked, Closed, Ended, Odd, Opened, Restarted, RunSeen, Tokens, Turned
from llorch_poold.mock_log import LINE_DECODER, LogEvent, LogLine
from llorch_shared.wire.audit import AuditRecord
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.task import TaskRequest

HISTORY: Final = "history.jsonl"
AFTER: Final = "after.json"
ENGINES: Final = "engines"
PROMPT_LENGTH: Final = len(prompt_of("00000000-0000-4000-8000-000000000000"))

ReaderEntry = Opened | Tokens | Restarted | Closed | Ended | Turned


class StoredStream(msgspec.Struct, frozen=True, kw_only=True):
    """The token log of one task as readers take it, repeats taken out: nothing of an attempt counts after the next one
    was announced."""

    texts: dict[int, str] = {}
    """By index."""
    differing: tuple[int, ...] = ()
    """Indices that were stored with more than one text."""
    ends: tuple[str, ...] = ()
    """Data of every distinct terminal frame, as JSON."""


class Counter(msgspec.Struct, frozen=True, kw_only=True):
    """A counter of one process. `whole` when that process was never started again, so that it counts from the begin."""

    process: str
    metric: str
    value: float
    whole: bool


class After(msgspec.Struct, frozen=True, kw_only=True):
    """The bus when everything has settled."""

    runs: tuple[RunRecord, ...] = ()
    audits: tuple[AuditRecord, ...] = ()
    streams: dict[str, StoredStream] = {}
    """By task."""
    tokens_since: float = 0.0
    """When the present token log was made, Unix seconds: it is memory, and a restarted server has a new one."""
    unsettled: tuple[str, ...] = ()
    """What did not come to rest in time: queues, replicas, leases, processes."""
    counters: tuple[Counter, ...] = ()
    record_faults: tuple[str, ...] = ()
    """What `orchctl audit verify` finds: in the chains of the audit, and between it and the run records."""


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a task by an engine. `ended` is None when its engine was killed in it."""

    engine: str
    began: float
    ended: float | None
    seed: int
    total: int
    sent: int
    behind: str = ""
    """What it was given behind the task's prompt: the text so far, where a sampled stream goes on."""

    @property
    def tokens(self) -> int:
        """Of the result, when it is whole."""
        return len(self.behind.split()) + self.total

    @property
    def whole(self) -> bool:
        return self.ended is not None and self.sent >= self.total


class Story(msgspec.Struct, kw_only=True):
    """Everything about one task."""

    task: str
    pool: str = ""
    tenant: str = ""
    request: TaskRequest | None = None
    asked: list[Asked] = []
    answered: list[Answered] = []
    readers: dict[int, list[ReaderEntry]] = {}
    odd: list[Odd] = []
    runs_seen: list[RunSeen] = []
    run: RunRecord | None = None
    audits: list[AuditRecord] = []
    stream: StoredStream = StoredStream()
    generations: list[Generation] = []
    words: list[str] | None = None
    """By index, what a real engine says when nothing is broken; mock engines tell their generations instead."""

    def outcomes(self, what: history.Op, *wanted: history.Outcome) -> list[Answered]:
        return [answer for answer in self.answered if answer.what is what and answer.outcome in wanted]

    @property
    def accepted(self) -> bool:
        return bool(self.outcomes(history.Op.SUBMIT, history.Outcome.ACCEPTED))


class Evidence(msgspec.Struct, kw_only=True):
    stories: dict[str, Story]
    after: After


def collect(entries: Iterable[history.Entry], after: After, generations: Sequence[tuple[str, Generation]]) -> Evidence:
    """Lay everything beside its task. `generations` come with their prompt."""
    stories: dict[str, Story] = {}
    for entry in entries:
        if entry.task not in stories:
            stories[entry.task] = Story(task=entry.task)
        _add(stories[entry.task], entry)
    prompts = {prompt_of(task): story for task, story in stories.items()}
    for prompt, generation in generations:
        own = prompt[:PROMPT_LENGTH]
        if own in prompts:
            generation = msgspec.structs.replace(generation, behind=prompt[PROMPT_LENGTH:])
            prompts[own].generations.append(generation)
    for run in after.runs:
        if run.task_id in stories:
            stories[run.task_id].run = run
    for audit in after.audits:
        if audit.task_id in stories:
            stories[audit.task_id].audits.append(audit)
    for task, stream in after.streams.items():
        if task in stories:
            stories[task].stream = stream
    return Evidence(stories=stories, after=after)


def _add(story: Story, entry: history.Entry) -> None:
    match entry:
        case Asked():
            story.asked.append(entry)
            if entry.request is not None:
                story.request, story.pool, story.tenant = entry.request, entry.pool, entry.tenant
        case Answered():
            story.answered.append(entry)
        case Odd():
            story.odd.append(entry)
        case RunSeen():
            story.runs_seen.append(entry)
        case _:
            story.readers.setdefault(entry.reader, []).append(entry)


def engine_log(engine: str, lines: Iterable[LogLine]) -> list[tuple[str, Generation]]:
    """The generations of one engine process, with their prompts."""
    begun: dict[int, LogLine] = {}
    ended: dict[int, LogLine] = {}
    for line in lines:
        (begun if line.event is LogEvent.BEGIN else ended)[line.number] = line
    return [(line.prompt, _generation(engine, line, ended.get(number))) for number, line in begun.items()]


def _generation(engine: str, begin: LogLine, end: LogLine | None) -> Generation:
    return Generation(
        engine=engine,
        began=begin.at,
        ended=None if end is None else end.at,
        seed=begin.seed,
        total=begin.total,
        sent=0 if end is None else end.sent,
    )


def load(folder: Path) -> Evidence:
    """From what a run has left."""
    after = msgspec.json.decode((folder / AFTER).read_bytes(), type=After)
    generations: list[tuple[str, Generation]] = []
    for path in sorted((folder / ENGINES).glob("*.jsonl")):
        lines = [
            LINE_DECODER.decode(line) for line in path.read_bytes().splitlines(keepends=True) if line[-1:] == b"\n"
        ]
        generations += engine_log(path.stem, lines)
    return collect(history.read(folder / HISTORY), after, generations)
