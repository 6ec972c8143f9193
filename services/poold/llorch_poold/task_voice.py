"""What is logged about one task: single lines with every id, never one per token."""

import logging
from typing import Any, Final

from llorch_poold.node_context import ReplicaFacts
from llorch_shared.logs import narrate
from llorch_shared.wire.run import RunRecord

log = logging.getLogger(__name__)


class TaskVoice:
    """Of one attempt on one replica."""

    def __init__(self, facts: ReplicaFacts, run: RunRecord) -> None:
        self._target: Final = facts.replica_id
        self._task_id: Final = run.task_id
        self._ids: Final[dict[str, Any]] = {
            "task_id": run.task_id,
            "job_id": run.task_id,
            "session_id": run.request.session_id if run.request is not None else "",
            "correlation_id": run.correlation_id,
            "pool_id": facts.pool_id,
            "replica_id": facts.replica_id,
            "engine": facts.engine,
            "engine_version": facts.engine_version,
        }

    def tell(self, action: str, says: str, *, level: int = logging.INFO, **fields: Any) -> None:
        """`says` goes on after "task <id>"."""
        narrate(
            log,
            f"task {self._task_id} {says}",
            actor="poold",
            action=action,
            target=self._target,
            level=level,
            **fields,
            **self._ids,
        )
