"""The audit record of what was done, with everything that explains it: `orchctl why TASK` reads nothing else."""

from llorch_scheduler.core.effects import Detail, Disown, End, Place, Requeue
from llorch_shared.wire.audit import AuditEvent, AuditRecord, audit_of_run


def audit_of(effect: Place | Requeue | End | Disown, run_seq: int, at_ms: int, actor: str) -> AuditRecord:
    event, detail = _event(effect)
    return audit_of_run(event, effect.record, run_seq=run_seq, at_ms=at_ms, actor=actor, detail=detail)


def _event(effect: Place | Requeue | End | Disown) -> tuple[AuditEvent, Detail]:
    match effect:
        case Place():
            return AuditEvent.PLACED, {**_decision(effect), **effect.detail}
        case Requeue():
            return AuditEvent.REQUEUED, {"reason": effect.reason}
        case Disown():
            return AuditEvent.ID_IN_USE, {}
        case End(record=record):
            tokens: Detail = {"tokens_in": record.tokens_in, "tokens_out": record.tokens_out}
            took: Detail = {} if record.cancel_ms is None else {"cancel_ms": record.cancel_ms}
            said = {"reason": effect.reason, **tokens, **took, **_error(effect), **effect.detail}
            return AuditEvent(str(record.state)), said


def _decision(effect: Place) -> Detail:
    """The decision log: who was looked at, what removed candidates, and the score of the one that was picked."""
    log = effect.log
    warmth: Detail = {} if log.kv_warmth is None else {"kv_warmth": log.kv_warmth}
    return {
        "candidates_considered": log.candidates_considered,
        "filters_applied": list(log.filters_applied),
        "tie_breakers_applied": list(log.tie_breakers_applied),
        "pinned": log.pinned,
        "fallback_used": log.fallback_used,
        "decision_reason": log.decision_reason,
        "predicted_end_ms": log.predicted_end_ms,
        "free_vram_mb": log.free_vram_mb,
        "active_slots": log.active_slots,
        "replica_set": log.replica_set,
        **warmth,
    }


def _error(effect: End) -> Detail:
    error = effect.record.error
    if error is None:
        return {}
    return {"error_code": str(error.code), "policy_label": error.policy_label or ""}
