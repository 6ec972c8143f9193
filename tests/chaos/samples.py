"""A clean history of one task, from which tests plant violations."""

from typing import Any, Final

import msgspec

from chaos import history
from chaos.asks import prompt_of
from chaos.evidence import After, Counter, Evidence, Generation, StoredStream, collect
from chaos.history import Answered, Asked, Ended, Op, Opened, Outcome, Restarted, RunSeen, Tokens
from llorch_poold.mock_text import text_of
from llorch_shared.wire.audit import AuditEvent, AuditRecord
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.task import Determinism, Failover, Priority, TaskState
from support.client import task_request

TASK: Final = "00000000-0000-4000-8000-000000000001"
TOKENS: Final = 5
SEED: Final = 7
T0: Final = 1_700_000_000.0
"""When the task was asked for; it is accepted 0.1 s later, runs from 1 s to 2 s, and its reader is there all along."""
WORDS: Final = tuple(f" {word}" for word in text_of(prompt_of(TASK), SEED, TOKENS).split())


class World:
    """One task that was done, as every witness tells it. Tests change what one of them says."""

    def __init__(self) -> None:
        self.words: list[str] = [*WORDS]
        request = task_request(task_id=TASK, prompt=prompt_of(TASK), max_tokens=TOKENS)
        self.entries: list[history.Entry] = [
            Asked(at=T0, op=1, task=TASK, what=Op.SUBMIT, via="gateway-1", pool="a", tenant="default", request=request),
            Answered(at=T0 + 0.1, op=1, task=TASK, what=Op.SUBMIT, via="gateway-1", outcome=Outcome.ACCEPTED),
            Opened(at=T0 + 0.2, reader=2, task=TASK, via="gateway-1"),
            RunSeen(at=T0 + 0.9, task=TASK, seq=10, state="placed", attempt=1),
            RunSeen(at=T0 + 1.0, task=TASK, seq=11, state="running", attempt=1),
            self.tokens(*range(TOKENS)),
            RunSeen(at=T0 + 2.0, task=TASK, seq=12, state="done", attempt=1),
            Ended(at=T0 + 2.1, reader=2, task=TASK, tokens_out=TOKENS, finish_reason="length"),
        ]
        self.run: RunRecord | None = RunRecord(
            task_id=TASK,
            state=TaskState.DONE,
            pool_id="a",
            node_id="node-1",
            lane="gw",
            correlation_id="c",
            tenant="default",
            priority=Priority.INTERACTIVE,
            admitted_ms=int(T0 * 1000),
            ended_ms=int((T0 + 2) * 1000),
            tokens_out=TOKENS,
            finish_reason="length",
        )
        self.audits = [self.audit(AuditEvent.RUNNING, 11), self.audit(AuditEvent.DONE, 12)]
        self.stream: dict[str, Any] = {"texts": dict(enumerate(WORDS)), "ends": ("{}",)}
        self.generations = [self.generation(1.0, 2.0)]
        self.after: dict[str, Any] = {
            "tokens_since": T0 - 10,
            "counters": (Counter(process="poold-1", metric="tasks_started_total", value=1, whole=True),),
        }

    def tokens(self, *indices: int, at: float = 1.5, reader: int = 2) -> Tokens:
        texts = [self.words[index] if index < len(self.words) else f" w{index}" for index in indices]
        return Tokens(at=T0 + at, until=T0 + at, reader=reader, task=TASK, indices=list(indices), texts=texts)

    def audit(self, event: AuditEvent, seq: int, **changes: Any) -> AuditRecord:
        fields: dict[str, Any] = {"pool_id": "a", "tenant": "default", "actor": "poold/node-1", **changes}
        return AuditRecord(event=event, task_id=TASK, at_ms=0, run_seq=seq, **fields)

    def generation(self, began: float, ended: float | None, *, sent: int = TOKENS, **changes: Any) -> Generation:
        fields: dict[str, Any] = {"engine": "1", "seed": SEED, "total": TOKENS, **changes}
        return Generation(began=T0 + began, ended=None if ended is None else T0 + ended, sent=sent, **fields)

    def cancelled(self, *, receipt_at: float = 1.5, via: str = "gateway-1") -> None:
        """Turn it into a task that was cancelled after three tokens, its record final at 1.4 s."""
        self.change_run(
            state=TaskState.CANCELLED, finish_reason="cancelled", tokens_out=3, ended_ms=int((T0 + 1.4) * 1000)
        )
        self.audits[1] = self.audit(AuditEvent.CANCELLED, 12)
        self.generations = [self.generation(1.0, 1.3, sent=3)]
        self.stream = {"texts": dict(enumerate(WORDS[:3])), "ends": ("{}",)}
        self.entries[5] = self.tokens(0, 1, 2, at=1.2)
        self.entries[6] = RunSeen(at=T0 + 1.4, task=TASK, seq=12, state="cancelled", attempt=1)
        self.entries[7] = Ended(at=T0 + 1.45, reader=2, task=TASK, tokens_out=3, finish_reason="cancelled")
        self.entries += [
            Asked(at=T0 + 1.25, op=3, task=TASK, what=Op.CANCEL, via=via),
            Answered(at=T0 + receipt_at, op=3, task=TASK, what=Op.CANCEL, via=via, outcome=Outcome.RECEIPT, status=204),
        ]

    def lost_its_engine(self, **asked: Any) -> None:
        """Turn it into a sampled task whose engine was killed when two tokens had been sent, and which then went on,
        at 1.4 s, as `failover` asks."""
        submitted = self.entries[0]
        assert isinstance(submitted, Asked)
        assert submitted.request is not None
        request = msgspec.structs.replace(submitted.request, determinism=Determinism.BEST_EFFORT, **asked)
        self.entries[0] = msgspec.structs.replace(submitted, request=request)
        restarts = request.failover is Failover.RESTART
        sent = "".join(WORDS[:2])
        behind, left = ("", TOKENS) if restarts else (sent, TOKENS - 2)
        self.words[2:] = [f" {word}" for word in text_of(prompt_of(TASK) + behind, SEED, left).split()]
        total = len(self.words)
        again = self.generation(1.4, 2.0, total=left, sent=left, behind=behind)
        self.generations = [self.generation(1.0, None, sent=0), again]
        void = 2 if restarts else None
        told: list[history.Entry] = [Restarted(at=T0 + 1.4, reader=2, task=TASK, index=2)] if restarts else []
        self.entries[5:6] = [self.tokens(0, 1, at=1.2), *told, self.tokens(*range(2, total))]
        self.entries[-1] = Ended(
            at=T0 + 2.1, reader=2, task=TASK, tokens_out=total, finish_reason="length", restarted_at=void
        )
        self.change_run(attempt=2, tokens_out=total, restarted_at=void)
        self.audits.insert(1, self.audit(AuditEvent.RUNNING, 12))
        self.stream = {"texts": dict(enumerate(self.words)), "ends": ("{}",)}
        self.after["counters"] = (Counter(process="poold-1", metric="tasks_started_total", value=2, whole=True),)

    def change_run(self, **changes: Any) -> None:
        assert self.run is not None
        self.run = msgspec.structs.replace(self.run, **changes)

    def evidence(self) -> Evidence:
        after = After(
            runs=() if self.run is None else (self.run,),
            audits=tuple(self.audits),
            streams={TASK: StoredStream(**self.stream)},
            **self.after,
        )
        said = [(prompt_of(TASK) + generation.behind, generation) for generation in self.generations]
        return collect(self.entries, after, said)
