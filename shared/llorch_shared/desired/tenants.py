"""Tenants: what each may use of every pool that has no entry of its own for it.

A tenant without an entry here or there has the pool's `admission.fairness.default`.
"""

from typing import Final

import msgspec

from llorch_shared import subjects
from llorch_shared.bus.conflicts import TRIES_MAX, retry_on_conflict
from llorch_shared.bus.port import Bus, WrongSequence
from llorch_shared.desired.entries import Author, Entries, Entry
from llorch_shared.wire.audit import AuditEvent, AuditRecord
from llorch_shared.wire.desired import TENANT_DECODER, Tenant

TENANTS: Final[Entries[Tenant]] = Entries("tenant", subjects.tenant_key, TENANT_DECODER)


async def put(bus: Bus, tenant: Tenant, by: Author, *, over: int | None = None) -> Entry[Tenant]:
    """Make it exactly `tenant`. `over`: the version that it must have, 0 for none; None for whatever there is. Raises
    WrongSequence, BusError."""

    async def attempt() -> Entry[Tenant]:
        before = await TENANTS.read(bus, tenant.id)
        if over is not None and over != (before.seq if before.value is not None else 0):
            raise WrongSequence(f"the tenant is at version {before.seq}")
        if before.value == tenant:
            return before
        note = _note(by, tenant.id, "put", before.value, tenant)
        seq = await TENANTS.write(bus, tenant.id, tenant, over=before.seq, by=by, note=note)
        return Entry(seq, tenant)

    return await retry_on_conflict(attempt, tries=TRIES_MAX if over is None else 1)


async def remove(bus: Bus, tenant_id: str, by: Author, *, over: int | None = None) -> bool:
    """Returns whether there was one. Raises WrongSequence, BusError."""

    async def attempt() -> bool:
        before = await TENANTS.read(bus, tenant_id)
        if before.value is None:
            return False
        note = _note(by, tenant_id, "remove", before.value, None)
        await TENANTS.remove(bus, tenant_id, over=before.seq if over is None else over, by=by, note=note)
        return True

    return await retry_on_conflict(attempt, tries=TRIES_MAX if over is None else 1)


def _note(by: Author, tenant_id: str, command: str, before: Tenant | None, after: Tenant | None) -> AuditRecord:
    old, new = (msgspec.to_builtins(each) if each is not None else {} for each in (before, after))
    said = [f"{key}: {old.get(key)} -> {new.get(key)}" for key in {**old, **new} if old.get(key) != new.get(key)]
    return by.note(AuditEvent.TENANT_CHANGED, tenant_id, {"command": command, "changes": said})
