"""What a changed specification changes, key by key, as the audit trail keeps it."""

from typing import Final

import msgspec

from llorch_shared.wire.audit import AuditEvent, AuditRecord, Detail
from llorch_shared.wire.spec import PoolSpec

REVISION: Final = "revision"
"""Key of a record's detail: the sequence of the version in the spec bucket that it is about."""
_ABSENT = "unset"
_SECRET_PREFIX = "provisioning.env."  # noqa: S105  (a key, not a secret)
_HIDDEN = "changed, hidden"
"""An engine's environment is where its secrets are: its values are never written."""


def audit(
    before: PoolSpec | None, after: PoolSpec | None, pool_id: str, at_ms: int, actor: str, *, revision: int = 0
) -> AuditRecord:
    """The record of a change; `before` is None for a new pool, `after` for a removed one. `revision` is the sequence of
    `after` in the spec bucket: by it a later scheduler sees that this change is audited."""
    detail: Detail
    if before is None or after is None:
        detail = {"pool": "removed" if after is None else "created"}
    else:
        detail = dict(changes(before, after))
    if revision:
        detail[REVISION] = revision
    return AuditRecord(
        event=AuditEvent.POOL_CHANGED, task_id=pool_id, pool_id=pool_id, at_ms=at_ms, actor=actor, detail=detail
    )


def changes(before: PoolSpec, after: PoolSpec) -> dict[str, str]:
    """`old→new` of every key that differs, by dotted path. Named members of a list (tenants, priorities) are told
    one by one: `admission.fairness.tenants.acme.weight`. Values that may be secrets are hidden."""
    old, new = _flat(before), _flat(after)
    return {
        key: _HIDDEN if key.startswith(_SECRET_PREFIX) else f"{old.get(key, _ABSENT)}→{new.get(key, _ABSENT)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, _ABSENT) != new.get(key, _ABSENT)
    }


def _flat(spec: PoolSpec) -> dict[str, str]:
    found: dict[str, str] = {}
    _collect(msgspec.to_builtins(spec), "", found)
    return found


def _collect(value: object, path: str, found: dict[str, str]) -> None:
    if isinstance(value, list | tuple) and value and all(isinstance(each, dict) for each in value):
        value = {str(each.get("id", each.get("name", place))): each for place, each in enumerate(value)}
    if isinstance(value, dict) and value:
        for key, each in value.items():
            _collect(each, f"{path}.{key}" if path else str(key), found)
    elif value is not None and value not in ((), [], {}):
        found[path] = msgspec.json.encode(value).decode()
