"""What one attempt says on its stream besides tokens, before its end: a frame each."""

from functools import cached_property
from typing import Final

import msgspec

from llorch_poold.core.seed import seed_of
from llorch_poold.node_context import ReplicaFacts
from llorch_shared.wire.frames import Metrics, Started, encode_metrics, encode_started
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.session import SessionRemaining

_NO_FACTS: Final = Metrics()


class AttemptFrames:
    def __init__(self, node_id: str, facts: ReplicaFacts, run: RunRecord) -> None:
        self._node_id: Final = node_id
        self._facts: Final = facts
        self._run: Final = run

    @cached_property
    def announcement(self) -> bytes:
        """Of a later attempt."""
        run = self._run
        return encode_metrics(
            Metrics(
                attempt=run.attempt,
                kv_migrated=False,
                kv_warmth=False,
                on_time_probability=run.on_time_probability,
                preempted=False if run.preemptions else None,
            )
        )

    def going_on(
        self, *, resume_from: int | None = None, restarted_at: int | None = None, tokens_out: int | None = None
    ) -> bytes:
        """Where the stream stands: who comes from another gateway sees by it that nothing is missing."""
        return encode_metrics(
            Metrics(
                attempt=self._run.attempt,
                kv_migrated=False,
                kv_warmth=False,
                resume_from=resume_from,
                restarted_at=restarted_at,
                tokens_out=tokens_out,
            )
        )

    def started(self, tokens_in: int) -> bytes:
        facts, run = self._facts, self._run
        return encode_started(
            Started(
                queue_position=run.queue_position,
                predicted_start_ms=run.predicted_start_ms,
                engine=facts.engine,
                engine_version=facts.engine_version,
                pool_id=facts.pool_id,
                replica_id=facts.replica_id,
                node_id=self._node_id,
                device=facts.device,
                model_digest=facts.model_digest,
                sampler_profile_version=facts.sampler_profile_version,
                seed=seed_of(run.task_id, run.request.seed if run.request is not None else None),
                attempt=run.attempt,
                tokens_in=tokens_in or None,
            )
        )

    def known(self, *, queue_depth: int | None) -> bytes:
        """About the task besides its tokens (ORCH-3081, 3100); empty when nothing is known."""
        run = self._run
        facts = Metrics(queue_depth=queue_depth, on_time_probability=run.on_time_probability, kv_warmth=run.kv_warmth)
        if run.session is not None:
            facts = _with_budget(facts, run.session.remaining)
        return encode_metrics(facts) if facts != _NO_FACTS else b""

    def budget(self, left: SessionRemaining) -> bytes:
        """What its session has left."""
        return encode_metrics(_with_budget(Metrics(attempt=self._run.attempt), left))


def made_way(attempt: int, resume_from: int) -> bytes:
    """The stream goes on later, as `attempt`."""
    return encode_metrics(Metrics(attempt=attempt, preempted=True, resume_from=resume_from))


def _with_budget(facts: Metrics, left: SessionRemaining) -> Metrics:
    return msgspec.structs.replace(
        facts,
        tokens_budget_remaining=left.tokens_budget_remaining,
        time_budget_remaining_ms=left.time_budget_remaining_ms,
        cost_budget_remaining=left.cost_budget_remaining,
    )
