"""Lists on a real server: places in streams with gaps, filters that the server applies, and times that it tells."""

import uuid
from typing import cast

import msgspec
import pytest

from llorch_gateway import audit_api, listing
from llorch_gateway.call import Call
from llorch_gateway.core.listing import Place, Wanted, parse_place
from llorch_gateway.listing import Listing
from llorch_gateway.operations import Ask
from llorch_gateway.snapshot import Snapshot
from llorch_gateway.tasks import Tasks
from llorch_shared import streams, subjects
from llorch_shared.audit_times import first_since
from llorch_shared.bus import nats
from llorch_shared.settings import NatsSettings
from llorch_shared.wire.audit import AuditEvent, AuditList, AuditRecord
from llorch_shared.wire.task import TaskState
from support.client import task_request
from support.gateways import pool_spec, run_record
from support.nats_server import NatsServer

pytestmark = pytest.mark.nats
CALL = Call(correlation_id="c", identity="localhost", channel="http", tenant="default")


async def test_every_task_and_record_is_listed_once_in_its_order(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = await nats.connect(NatsSettings(url=nats_server.url), name="lists")
    spec = pool_spec()
    await bus.ensure(streams.base())
    await bus.ensure(streams.admission(spec))
    await bus.store(subjects.spec(subjects.pool_key(spec.id)), msgspec.json.encode(spec))
    ran = [str(uuid.uuid4()) for _ in range(60)]
    for task in (*ran, *ran[:20]):
        await bus.store(subjects.run(task), msgspec.json.encode(run_record(task, TaskState.DONE)))
        await bus.store(subjects.cancel(task), b"{}")
    waits = [task_request() for _ in range(5)]
    for number, request in enumerate(waits):
        tenant = "blue" if number in (2, 3) else "default"
        queued_at = subjects.own_admission if number == 3 else subjects.admission
        await bus.store(queued_at(spec.id, "interactive", tenant), msgspec.json.encode(request))
    for task in ran[:30]:
        record = AuditRecord(event=AuditEvent.DONE, task_id=task, at_ms=1, actor="test", tenant="default")
        await bus.store(subjects.audit(AuditEvent.DONE, task), msgspec.json.encode(record))
    snapshot = Snapshot(bus)
    await snapshot.start()
    lists = Listing(bus, snapshot)

    async def listed(wanted: Wanted) -> list[str]:
        seen: list[str] = []
        place: Place | None = None
        while True:
            page = await lists.page(wanted, place)
            seen += [view.task_id for view in page.tasks]
            if page.cursor is None:
                return seen
            place = parse_place(page.cursor)

    queued = [request.task_id for request in waits]
    everything = [*queued, *reversed(ran[:20]), *reversed(ran[20:])]
    assert await listed(Wanted(limit=500)) == everything
    assert await listed(Wanted(tenant="blue")) == queued[2:4]
    assert await listed(Wanted(tenant="blue", limit=1)) == queued[2:4]
    assert {view.tenant for view in (await lists.page(Wanted(state=TaskState.QUEUED), None)).tasks} == {
        "blue",
        "default",
    }
    [first] = (await lists.page(Wanted(limit=1), None)).tasks
    assert first.admitted_ms > 0
    monkeypatch.setattr(listing, "READ_BYTES", 2_000)
    monkeypatch.setattr(listing, "READS_MAX", 2)
    assert await listed(Wanted(limit=7)) == everything

    tasks = cast(Tasks, None)  # asked only for callers that are bound to a tenant
    audit = audit_api.handlers(bus, tasks)["listAudit"]
    monkeypatch.setattr(audit_api, "READ_BYTES", 2_000)
    monkeypatch.setattr(audit_api, "READS_MAX", 2)
    found: list[str] = []
    given: dict[str, object] = {"limit": 7}
    while True:
        answer = (await audit(Ask(CALL, given))).body
        assert isinstance(answer, AuditList)
        found += [record.task_id for record in answer.records]
        if answer.cursor is None:
            break
        given["cursor"] = answer.cursor
    assert found == ran[:30]
    assert await first_since(bus, 2**52) == 31
    assert await first_since(bus, 5) == 1
    await snapshot.close()
    await bus.close()
