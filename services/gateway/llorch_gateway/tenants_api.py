"""Operations on tenants: what each may use of every pool that has no entry of its own for it."""

from typing import Final

from llorch_gateway.operations import Answer, Ask, Handlers
from llorch_gateway.pools_api import Authors, etag, version_of
from llorch_shared.bus.port import Bus, WrongSequence
from llorch_shared.desired import tenants
from llorch_shared.desired.tenants import TENANTS
from llorch_shared.errors import invalid, not_found
from llorch_shared.wire.desired import Tenant, TenantList

TENANTS_MAX: Final = 1_000
"""Every scheduler and gateway holds each of them for each pool."""


def handlers(bus: Bus, author: Authors) -> Handlers:
    async def list_tenants(ask: Ask) -> Answer:
        ask.call.check_operator()
        found = await TENANTS.all(bus)
        return Answer(TenantList(tenants=tuple(tenant for _, (tenant, _) in sorted(found.items()))))

    async def get_tenant(ask: Ask) -> Answer:
        ask.call.check_operator()
        entry = await TENANTS.read(bus, ask.given["id"])
        if entry.value is None:
            raise not_found(f"tenant {ask.given['id']}")
        return Answer(entry.value, headers=etag(entry.seq))

    async def put_tenant(ask: Ask) -> Answer:
        ask.call.check_operator()
        tenant = ask.body(Tenant)
        if tenant.id != ask.given["id"]:
            raise invalid(f"id: this is tenant {ask.given['id']}, and its id cannot change")
        known = await TENANTS.all(bus)
        if tenant.id not in known and len(known) >= TENANTS_MAX:
            raise invalid(f"{TENANTS_MAX} tenants have limits of their own, and no more may", status=409)
        over = version_of(ask) if "If-Match" in ask.given else None
        try:
            entry = await tenants.put(bus, tenant, author(ask.call), over=over)
        except WrongSequence as error:
            raise invalid(f"tenant {tenant.id} was changed meanwhile: read it again", status=412) from error
        return Answer(entry.value, headers=etag(entry.seq))

    async def delete_tenant(ask: Ask) -> Answer:
        ask.call.check_operator()
        if not await tenants.remove(bus, ask.given["id"], author(ask.call)):
            raise not_found(f"tenant {ask.given['id']}")
        return Answer(status=204)

    return {
        "listTenants": list_tenants,
        "getTenant": get_tenant,
        "putTenant": put_tenant,
        "deleteTenant": delete_tenant,
    }
