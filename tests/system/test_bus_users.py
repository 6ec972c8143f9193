"""Each service with its own user on the bus: enough for everything it does, and for little else."""

import asyncio
import os
import re
import sys
import uuid
from collections.abc import AsyncIterator
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import nats
import pytest
from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.errors import NoRespondersError

from llorch_shared import streams, subjects
from llorch_shared.bus.nats import NatsBus, connect
from llorch_shared.bus.port import Denied
from llorch_shared.bus.topology import Stream, Topology
from llorch_shared.client import Client as TypedClient
from llorch_shared.client import Refusal
from llorch_shared.errors import ErrorCode
from llorch_shared.settings import NatsSettings
from llorch_shared.wire.frames import End, Token, split_events
from llorch_shared.wire.objects import ObjectRef
from llorch_shared.wire.provision import EnsureModel
from llorch_shared.wire.run import RunRecord, decode_run
from llorch_shared.wire.task import TaskAccepted, TaskState
from support.client import follow, task_request
from support.system import System, mock_pool

pytestmark = [pytest.mark.system, pytest.mark.timeout(150)]


VECTORS = b"a model of vectors"


def model_of(folder: Path) -> str:
    return f"file:{folder / 'vectors.gguf'}"


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return ("asyncio", {"use_uvloop": True})


@pytest.fixture(scope="module")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    """One for all of them."""
    folder = tmp_path_factory.mktemp("users")
    (folder / "vectors.gguf").write_bytes(VECTORS)
    vectors = mock_pool("vectors", replicas=1, slots=1, model=model_of(folder), workloads=["embedding"])
    pools = [mock_pool(replicas=1, slots=2, rate=200, ctx=16_384), vectors]
    async with System(folder, pools=pools, gateways=2, bus_tenants=["acme", "other"]) as running:
        yield running


def forbidden(system: System) -> list[str]:
    """What the server has refused to anybody: otherwise a refusal is only silence."""
    log = (system.nats.folder / "nats.log").read_text()
    return re.findall(r"\[ERR\] .*Violation.*", log)


async def stolen(system: System, user: str, inbox: str) -> NatsBus:
    """A connection of who has got hold of a seed."""
    seed = str(system.seed(user))
    settings = NatsSettings(url=system.nats.url, nkey_seed_file=seed, inbox_prefix=f"_INBOX_{inbox}")
    return await connect(settings, name="thief")


async def runs(system: System, task_id: str) -> bool:
    return (await system.client().get(task_id)).state is TaskState.RUNNING


async def is_traced(system: System, task_id: str) -> bool:
    reply = await system.client().http.get("/v1/artifacts", params={"kind": "trace", "tag": f"task:{task_id}"})
    return bool(reply.json()["artifacts"])


async def serves_others(system: System) -> bool:
    health = await system.health("vectors")
    return health is not None and any(replica.model_ref == "mock:others" for replica in health.replicas)


async def verify_a_model(system: System) -> None:
    """The node has the model of `vectors`, and the catalog has it verified."""
    reference = model_of(system.folder)
    wish = msgspec.json.encode(EnsureModel(model_ref=reference))
    plan = msgspec.json.decode((await system.bus.request(subjects.provision_model("node-1"), wish, timeout_s=20)).data)
    assert not plan.get("refusal"), plan
    entry = {"id": "vectors", "digest": f"sha256:{sha256(VECTORS).hexdigest()}", "source_url": reference}
    await done(system, "POST", "/v1/catalog/models", json=entry)
    await done(system, "POST", "/v1/catalog/models/vectors/state", json={"state": "Canary"})
    await done(system, "POST", "/v1/catalog/models/vectors/verify")
    await system.until(partial(is_verified, system), "a verified model", 15)


async def is_verified(system: System) -> bool:
    entry = (await system.client().http.get("/v1/catalog/models/vectors")).json()
    return bool(entry["verification"] and entry["verification"]["node_id"])


async def done(system: System, method: str, path: str, **more: Any) -> None:
    reply = await system.client().http.request(method, path, **more)
    assert reply.is_success, (method, path, reply.text)


async def said(heard: Subscription) -> list[str]:
    """The events of one task, by name, up to its end."""
    names: list[str] = []
    while not names or names[-1] not in ("end", "error"):
        names += [event.event for event in split_events((await heard.next_msg(timeout=20)).data)]
    return [name for name in names if name != "metrics"]


async def status_of(connection: Client, twin: str, payload: bytes) -> str:
    reply = await connection.request(subjects.api(twin), payload, timeout=20)
    return (reply.headers or {}).get("Nats-Service-Error-Code", "")


async def test_what_users_may_do_is_enough_for_the_whole_system(system: System) -> None:
    one, two = system.client(1), system.client(2)
    accepted = await one.submit(max_tokens=30, trace=True)
    other_gateway, mine = await asyncio.gather(two.read(accepted.task_id), one.read(accepted.task_id))
    assert other_gateway.text == mine.text
    large = await one.submit(max_tokens=2, prompt="word " * 200_000, ctx=16_384)
    await one.read(large.task_id)
    cancelled = await one.submit(max_tokens=2000)
    await two.cancel(cancelled.task_id)
    assert (await one.get(cancelled.task_id)).state is TaskState.CANCELLED
    busy = [await one.submit(max_tokens=2000) for _ in range(2)]
    queued = await one.submit(max_tokens=5, trace=True)
    for task in (queued, *busy):
        await two.cancel(task.task_id)
    await system.until(partial(is_traced, system, queued.task_id), "the transcript of a task that never ran", 20)
    lost = await one.submit(max_tokens=1000)
    reading = asyncio.create_task(follow(system.clients, lost.task_id))
    await system.until(partial(runs, system, lost.task_id), "a task that runs", 15)
    (url,) = await system.engine_urls("mock:words")
    await system.kill_engine_at(url)
    assert len((await reading).tokens) == 1000
    session = str(uuid.uuid4())
    await done(system, "PUT", f"/v1/sessions/{session}", json={"tokens_budget": 100})
    await one.read((await one.submit(max_tokens=5, session_id=session)).task_id)
    await done(system, "GET", f"/v1/sessions/{session}")
    await done(system, "DELETE", f"/v1/sessions/{session}")
    chat = {"model": "mock", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
    await done(system, "POST", "/v1/chat/completions", json=chat)
    await done(system, "POST", "/v1/embeddings", json={"model": "vectors", "input": ["one", "two"]})
    await verify_a_model(system)
    await done(system, "POST", "/v1/artifacts", json={"kind": "plan", "content": {"steps": ["one"]}})
    await done(system, "PUT", "/v1/tenants/blue", json={"id": "blue", "weight": 2})
    for path in ("/v1/tasks", "/v1/audit", "/v1/pools", "/v1/capabilities", "/v1/tenants", "/v1/artifacts"):
        await done(system, "GET", path)
    await done(system, "POST", "/v1/pools/mock/drain", json={"deadline_ms": 10_000})
    await system.replicas_ready("mock", 0)
    await done(system, "DELETE", "/v1/pools/mock/drain")
    await system.replicas_ready("mock", 1)
    await done(system, "POST", "/v1/pools/vectors/reload", json={"new_model_ref": "mock:others"})
    await system.until(partial(serves_others, system), "the other model", 30)
    system.kill9("nats")
    await system.restart("nats")
    after = await one.submit(max_tokens=3)
    await one.read(after.task_id)
    assert forbidden(system) == []


async def test_the_auditor_verifies_the_audit_and_changes_nothing(system: System) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "llorch_ctl", "audit", "verify", "--json"),
        env={
            **os.environ,
            "NATS_URL": system.nats.url,
            "NATS_NKEY_SEED_FILE": str(system.seed("auditor")),
            "NATS_INBOX_PREFIX": "_INBOX_auditor",
        },
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    auditor = await stolen(system, "auditor", "auditor")
    with pytest.raises(Denied):
        await auditor.store(subjects.audit("done", str(uuid.uuid4())), b"{}")
    await auditor.close()


async def test_a_node_speaks_for_itself_and_makes_no_streams(system: System) -> None:
    thief = await stolen(system, "poold-node-1", "poold.node-1")
    own, others = subjects.registry("replica.node-1.forged"), subjects.registry("replica.node-2.forged")
    assert (await thief.store(own, b"{}", ttl_s=1)).seq
    for subject in (others, subjects.registry("node.node-2"), subjects.registry("lease.scheduler.1")):
        with pytest.raises(Denied):
            await thief.store(subject, b"{}", ttl_s=1)
    for subject in ("$KV.SPEC.tenant.blue", "$KV.CAT.model.words", "llorch.adm.mock.batch.default"):
        with pytest.raises(Denied):
            await thief.store(subject, b"{}")
    for subject in ("_INBOX_gateway.>", "_INBOX_poold.node-2.>", "_INBOX.>", "llorch.tok.>", "$KV.SES.>", ">"):
        with pytest.raises(Denied):
            await thief.subscribe(subject, lambda _: None)
    stream = Stream(name="X", config={"name": "X", "subjects": ["x"]})
    with pytest.raises(Denied):
        await thief.ensure(Topology(streams=(stream,)))
    for verb in ("DELETE", "PURGE", "UPDATE", "SNAPSHOT"):
        with pytest.raises(Denied):
            await thief.request(f"$JS.API.STREAM.{verb}.{streams.RUN}", b"")
    await thief.close()


async def test_nobodys_question_makes_a_service_write_for_him(system: System) -> None:
    """Whoever may ask a service chooses where the answer goes."""
    thief = await stolen(system, "gateway", "gateway")
    key, subject = subjects.registry("lease.scheduler.forged"), subjects.locate(subjects.shard_of("mock"))
    question = msgspec.json.encode({"task_id": str(uuid.uuid4())})
    thief._link.publish(subject, question, b"", key)
    assert (await thief.request(subject, question)).data, "one connection asks in order"
    assert await system.bus.last(streams.REG, key) is None
    await thief.close()


async def test_a_tenant_on_the_bus_is_bound_to_its_tenant(system: System) -> None:
    seed = str(system.seed("tenant-acme"))
    acme = await nats.connect(system.nats.url, nkeys_seed=seed)
    try:
        request = task_request(max_tokens=6)
        heard = await acme.subscribe(subjects.tokens_of_task(request.task_id))
        everything = await acme.subscribe(subjects.ALL_TOKENS)
        await acme.flush()
        theirs = await system.client().submit(max_tokens=3)
        await system.client().read(theirs.task_id)
        forged = {"Nats-Request-Info": '{"acc":"TENANT_other"}'}
        reply = await acme.request(
            subjects.api("tasks.submit"), msgspec.json.encode(request), headers=forged, timeout=15
        )
        assert msgspec.json.decode(reply.data, type=TaskAccepted).task_id == request.task_id
        assert await said(heard) == ["started", *["token"] * 6, "end"]
        record = await system.bus.last(streams.RUN, subjects.run(request.task_id))
        assert record is not None
        assert decode_run(record.data, record.headers).tenant == "acme"
        asked = msgspec.json.encode({"task_id": request.task_id})
        stored = msgspec.json.decode((await acme.request(subjects.api("tasks.events"), asked, timeout=20)).data)
        names = [event["event"] for event in stored["events"] if event["event"] != "metrics"]
        assert names == ["started", *["token"] * 6, "end"]
        assert stored["end"]["data"]["tokens_out"] == 6
        for verb in ("get", "events", "cancel"):
            stranger = msgspec.json.encode({"task_id": theirs.task_id})
            assert (await status_of(acme, f"tasks.{verb}", stranger)) == "404"
        assert await status_of(acme, "tenants.put", b'{"tenant_id":"acme","weight":100}') == "403"
        queued = task_request(max_tokens=4, priority="batch")
        heard = await acme.subscribe(subjects.tokens_of_task(queued.task_id))
        lane = {subjects.LANE_HEADER: "bus-other"}
        ack = await acme.jetstream().publish("llorch.adm.mock.batch.acme", msgspec.json.encode(queued), headers=lane)
        assert ack.stream == streams.admission_stream("mock", queued.priority)
        assert await said(heard) == ["started", *["token"] * 4, "end"]
        for subject in ("llorch.adm.mock.batch.other", "llorch.run.x", "$KV.REG.node.x", "$JS.API.DIRECT.GET.RUN"):
            with pytest.raises(NoRespondersError):
                await acme.request(subject, b"{}", timeout=15)
        await acme.flush()
        subjects_heard = {(await everything.next_msg(timeout=20)).subject for _ in range(everything.pending_msgs)}
        lanes = {subject.split(".")[2] for subject in subjects_heard}
        assert lanes == {"bus-acme"}
    finally:
        await acme.close()


async def test_a_tenant_that_queues_a_task_itself_gains_nothing_by_it(system: System) -> None:
    theirs = await system.client().submit(max_tokens=2)
    await system.client().read(theirs.task_id)
    record = await system.bus.last(streams.RUN, subjects.run(theirs.task_id))
    assert record is not None
    a_gateway = {subjects.LANE_HEADER: decode_run(record.data, record.headers).lane}
    known = ObjectRef(digest=f"sha256:{'a' * 64}", bytes=900)
    acme = await nats.connect(system.nats.url, nkeys_seed=str(system.seed("tenant-acme")))

    async def queued(**asked: Any) -> tuple[list[str], RunRecord]:
        task = task_request(max_tokens=2, **asked)
        heard = await acme.subscribe(subjects.tokens_of_task(task.task_id))
        await acme.flush()
        subject = subjects.admission("mock", "interactive", "acme")
        await acme.jetstream().publish(subject, msgspec.json.encode(task), headers=a_gateway)
        names = await said(heard)
        stored = await system.bus.last(streams.RUN, subjects.run(task.task_id))
        assert stored is not None
        return names, decode_run(stored.data, stored.headers)

    try:
        names, run = await queued()
        assert names == ["started", "token", "token", "end"]
        assert (run.tenant, run.lane, run.channel) == ("acme", "bus-acme", "nats")
        for asked in ({"override": True}, {"payload_ref": known, "prompt": None}):
            names, run = await queued(**asked)
            assert names == ["error"]
            assert run.error is not None
            assert (run.state, run.error.code) == (TaskState.FAILED, ErrorCode.INVALID_PARAMS)
            assert run.error.message.startswith(next(iter(asked)))
    finally:
        await acme.close()


async def test_a_tenant_that_queues_a_task_itself_can_take_no_other_tenants_place(system: System) -> None:
    """Neither with another's id nor with the message id that its gateway will use."""
    acme = await nats.connect(system.nats.url, nkeys_seed=str(system.seed("tenant-acme")))
    queue = subjects.admission("mock", "interactive", "acme")
    try:
        theirs, mine = task_request(max_tokens=3), task_request(max_tokens=1)
        await acme.jetstream().publish(queue, msgspec.json.encode(mine), headers={"Nats-Msg-Id": theirs.task_id})
        await system.client().submit(theirs)
        transcript = await system.client().read(theirs.task_id)
        assert len(transcript.tokens) == 3
        theirs = task_request(max_tokens=300)
        await system.client().submit(theirs)
        heard = await acme.subscribe(subjects.tokens_of_task(theirs.task_id))
        await acme.flush()
        await acme.jetstream().publish(queue, msgspec.json.encode(msgspec.structs.replace(theirs, max_tokens=1)))
        assert await said(heard) == ["error"]
        assert len((await system.client().read(theirs.task_id)).tokens) == 300
    finally:
        await acme.close()


async def test_a_tenants_client_reads_what_it_did_not_hear_and_nothing_of_others(system: System) -> None:
    theirs = await system.client().submit(max_tokens=2)
    bus = await connect(
        NatsSettings(url=system.nats.url, nkey_seed_file=str(system.seed("tenant-acme"))), name="acme/reader"
    )
    client = TypedClient(bus)
    try:
        task = (await client.submit(task_request(max_tokens=5))).task_id
        for after, indices in (("", [0, 1, 2, 3, 4]), ("1-2", [3, 4])):
            events = [event async for event in client.stream(task, after=after)]
            assert [event.i for event in events if isinstance(event, Token)] == indices
            assert isinstance(events[-1], End)
        with pytest.raises(Refusal):
            await anext(client.stream(theirs.task_id))
    finally:
        await bus.close()


async def test_a_tenant_cannot_hide_its_account_behind_a_broken_header(system: System) -> None:
    acme = await nats.connect(system.nats.url, nkeys_seed=str(system.seed("tenant-acme")))
    try:
        forged = b'Nats-Request-Info: {"acc":"TENANT_other"}\r\n'
        for block in (b"NATS/1.0\r\nX: hides", b"NATS/1.0\nX: hides\n\n", b"NATS/1.0\r\n" + 2 * forged + b"X: hides"):
            inbox = acme.new_inbox()
            answer = await acme.subscribe(inbox)
            subject = subjects.api("tasks.list").encode()
            line = b"HPUB %b %b %d %d" % (subject, inbox.encode(), len(block), len(block) + 2)
            await acme._send_command(b"%b\r\n%b{}\r\n" % (line, block))
            await acme.flush()
            reply = await answer.next_msg(timeout=15)
            assert (reply.headers or {}).get("Nats-Service-Error-Code") == "403"
        assert await status_of(acme, "tasks.list", b"{}") == ""
    finally:
        await acme.close()


async def test_nothing_was_refused_but_to_thieves(system: System) -> None:
    assert all("thief" in line for line in forbidden(system))
