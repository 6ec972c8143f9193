"""What the story asks: of each operation what is answered when all is well, and when it is not.

The scheduler and the node are played here; every answer is the gateway's.
"""

from pathlib import Path
from typing import Any, Final

import anyio
import msgspec

from contract.story import BY_ID, Teller
from llorch_shared import streams, subjects
from llorch_shared.bus.port import Message
from llorch_shared.contracts import examples as made
from llorch_shared.http_api import Operation
from llorch_shared.wire import frames
from llorch_shared.wire.catalog import VerifyAnswer
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.task import TaskState, Workload
from support.asgi import Reply
from support.client import task_request
from support.gateways import Cluster, Door, cluster_of, load_report, pool_spec, replica, run_record, settle
from support.tokens import bearer, write_tokens

TASK: Final = "6f1d3c1e-64a0-4e1a-9f53-{:012d}"
SESSION: Final = "0b9c6a52-9a53-4a5e-8d0a-5f1c3a8e7d11"
NOBODY: Final = TASK.format(999)
WITHIN_S: Final = 15
MODEL: Final = "mock:words"
VECTORS: Final = "mock:vectors"
RANKS: Final = "mock:ranks"
END: Final = frames.End(tokens_out=2, decode_ms=40, decode_time_ms=40, finish_reason="stop", tokens_in=14)
TOKENS: Final = tuple(frames.encode_token(1, index, text) for index, text in enumerate(("Rivers", " flow.")))


async def tell(teller: Teller, folder: Path) -> None:
    async with cluster_of() as cluster:
        await _serve_more(cluster)
        door = await cluster.gateway()
        await _tasks(teller, cluster, door)
        await _streams(teller, cluster, door)
        await _sessions(teller, door)
        await _completions(teller, cluster, door)
        await _pools(teller, cluster, door)
        await _tenants(teller, door)
        await _artifacts(teller, door)
        await _catalog(teller, cluster, door)
        await _history(teller, cluster, door)
        await _process(teller, door)
        await _strangers(teller, await cluster.gateway(token="a-token-of-the-story"))
        await _too_often(teller, cluster, folder)


async def _serve_more(cluster: Cluster) -> None:
    for name, model, workload in (("vectors", VECTORS, Workload.EMBEDDING), ("ranks", RANKS, Workload.RERANK)):
        await cluster.add_pool(
            pool_spec(name, model=model, workloads=(workload,)),
            replica(name, model_ref=model, workloads=(workload,)),
        )
    await cluster.add_pool(pool_spec("full", model="mock:full", capacity=1), replica("full", model_ref="mock:full"))
    await cluster.report(load_report("full", slots_free=0, running=4, service_ms=2_000.0, queued={"interactive": 1}))


def _request(number: int, **changes: Any) -> dict[str, Any]:
    fields = {
        "task_id": TASK.format(number),
        "session_id": SESSION,
        "max_tokens": 64,
        "deadline_ms": 60_000,
        "prompt": "Write one sentence about rivers.",
        **changes,
    }
    told = msgspec.to_builtins(task_request(**fields))
    assert isinstance(told, dict)
    return told


async def _tasks(teller: Teller, cluster: Cluster, door: Door) -> None:
    task = _request(1)
    await teller.ask(door, "submitTask", "accepted", 202, body=task)
    await teller.ask(door, "submitTask", "a field that no task has", 400, body={**task, "temprature": 1})
    await teller.ask(door, "submitTask", "no room for a prompt", 400, body={**task, "ctx": 0})
    await door.submit(model_ref="mock:full")
    full = _request(2, model_ref="mock:full")
    await teller.ask(door, "submitTask", "the queue is full", 429, body=full)
    await cluster.record(_ended(3))
    await teller.ask(door, "getTask", "ended", 200, path={"id": TASK.format(3)})
    await teller.ask(door, "getTask", "nobody knows it", 404, path={"id": NOBODY})
    await teller.ask(door, "getTask", "no id", 400, path={"id": "my-task"})
    await teller.ask(door, "listTasks", "those that have ended", 200, query={"state": "done", "limit": "10"})
    await teller.ask(door, "listTasks", "a state that is none", 400, query={"state": "finished"})
    await cluster.record(_ended(4, state=TaskState.CANCELLED, finish_reason="cancelled", cancel_ms=61))
    for name, title in (("cancelTask", "the receipt"), ("deleteTask", "the receipt")):
        await teller.ask(door, name, title, 204, path={"id": TASK.format(4)})
        await teller.ask(door, name, "nobody knows it", 404, path={"id": NOBODY})


def _ended(number: int, **changes: Any) -> RunRecord:
    fields: dict[str, Any] = {
        "state": TaskState.DONE,
        "replica_id": "p1-node-0",
        "node_id": "node",
        "admitted_ms": 1_760_000_000_000,
        "placed_ms": 1_760_000_000_004,
        "started_ms": 1_760_000_000_009,
        "ended_ms": 1_760_000_001_310,
        "tokens_in": 14,
        "tokens_out": 2,
        "decode_ms": 40,
        "finish_reason": "stop",
        **changes,
    }
    return run_record(TASK.format(number), fields.pop("state"), **fields)


async def _streams(teller: Teller, cluster: Cluster, door: Door) -> None:
    for number, (name, story) in enumerate(made.STREAM_FRAMES.items(), start=10):
        path = {"id": TASK.format(number)}
        await door.submit(task_id=path["id"], max_tokens=64)
        reply = teller.begin(door, "streamTask", path=path)
        await reply.until(lambda seen: bool(seen.status))
        await cluster.publish(door.lane, path["id"], *story)
        await teller.tell(reply, "streamTask", name, 200, path=path)
    cursor = {"Last-Event-ID": "1-2"}
    await cluster.record(_ended(3))
    await teller.ask(door, "streamTask", "nothing is left to send", 204, path={"id": TASK.format(3)}, headers=cursor)
    await teller.ask(door, "streamTask", "nobody knows it", 404, path={"id": NOBODY})
    await cluster.publish("bus", TASK.format(3), *made.STREAM_FRAMES["from the beginning"])
    await teller.ask(door, "listTaskEvents", "all of it", 200, path={"id": TASK.format(3)})
    await teller.ask(door, "listTaskEvents", "nobody knows it", 404, path={"id": NOBODY})


async def _sessions(teller: Teller, door: Door) -> None:
    session = {"id": SESSION}
    await teller.ask(
        door, "putSession", "with budgets", 200, path=session, body={"tokens_budget": 2_000, "turns_max": 4}
    )
    await teller.ask(door, "putSession", "a budget below zero", 400, path=session, body={"tokens_budget": -1})
    await teller.ask(door, "getSession", "what is left", 200, path=session)
    await teller.ask(door, "getSession", "no such session", 404, path={"id": NOBODY})
    await teller.ask(door, "submitTask", "in a session with a budget", 202, body=_request(5))
    over = _request(6, max_tokens=2_000)
    await teller.ask(door, "submitTask", "more than the session has left", 429, body=over)
    await teller.ask(door, "deleteSession", "ended", 204, path=session)
    await teller.ask(door, "deleteSession", "no id", 400, path={"id": "mine"})


async def _completions(teller: Teller, cluster: Cluster, door: Door) -> None:
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "Write one sentence about rivers."}]}
    for number, (operation, name, body) in enumerate(
        (
            ("createChatCompletion", "whole", chat),
            ("createChatCompletion", "streamed", {**chat, "stream": True, "stream_options": {"include_usage": True}}),
            ("createCompletion", "whole", {"model": MODEL, "prompt": "Rivers", "max_tokens": 8}),
            ("createCompletion", "streamed", {"model": MODEL, "prompt": "Rivers", "max_tokens": 8, "stream": True}),
            ("createResponse", "whole", {"model": MODEL, "input": "Write one sentence about rivers."}),
            ("createResponse", "streamed", {"model": MODEL, "input": "Rivers?", "stream": True}),
            ("createMessage", "whole", {**chat, "max_tokens": 64}),
            ("createMessage", "streamed", {**chat, "max_tokens": 64, "stream": True}),
        ),
        start=20,
    ):
        await _completed(teller, cluster, door, operation, name, body, TASK.format(number), *TOKENS)
    await _completed(
        teller,
        cluster,
        door,
        "createEmbedding",
        "two texts",
        {"model": VECTORS, "input": ["a river", "a stream"]},
        TASK.format(30),
        frames.encode_token(1, 0, '{"index":0,"embedding":[0.6,0.8]}'),
        frames.encode_token(1, 1, '{"index":1,"embedding":[0.8,0.6]}'),
    )
    await _completed(
        teller,
        cluster,
        door,
        "createRanking",
        "two documents",
        {"model": RANKS, "query": "water", "documents": ["a stone", "a stream"]},
        TASK.format(31),
        frames.encode_token(1, 0, '{"index":0,"relevance_score":0.1}'),
        frames.encode_token(1, 1, '{"index":1,"relevance_score":0.9}'),
    )
    for operation, body in (
        ("createChatCompletion", {"model": MODEL, "messages": []}),
        ("createCompletion", {"model": MODEL}),
        ("createEmbedding", {"model": VECTORS}),
        ("createRanking", {"model": RANKS, "query": "water"}),
        ("createResponse", {"model": MODEL}),
        ("createMessage", {**chat, "messages": []}),
    ):
        await teller.ask(door, operation, "something is missing", 400, body=body)
    await teller.ask(door, "listModels", "all", 200)
    await teller.ask(door, "getModel", "by its name", 200, path={"id": MODEL})
    await teller.ask(door, "getModel", "nobody serves it", 404, path={"id": "mock:other"})


async def _completed(
    teller: Teller, cluster: Cluster, door: Door, operation: str, name: str, body: Any, task: str, *sent: bytes
) -> None:
    """The node answers once the gateway has a reader for the task."""
    headers = {"X-Llorch-Task-Id": task}
    reply: Reply = teller.begin(door, operation, headers=headers, body=body)
    with anyio.fail_after(WITHIN_S):
        while not door.gateway.backend.router.seats:
            await anyio.sleep(0)
    await cluster.publish(door.lane, task, made.STREAM_BEGIN, *sent, frames.encode_end(1, END))
    await teller.tell(reply, operation, name, 200, headers=headers, body=body)


async def _pools(teller: Teller, cluster: Cluster, door: Door) -> None:
    await teller.ask(door, "getCapabilities", "what is served", 200)
    new = {"id": "small", "engine": "llamacpp", "model": "file:small.gguf", "devices": [0], "slots": 4, "ctx": 8192}
    created = await teller.ask(door, "createPool", "new", 201, body=new)
    await teller.ask(door, "createPool", "it is there", 409, body=new)
    await teller.ask(door, "createPool", "a field that no pool has", 400, body={**new, "slot": 4})
    await teller.ask(door, "listPools", "all", 200)
    small = {"id": "small"}
    await teller.ask(door, "getPool", "as it is wanted", 200, path=small)
    await teller.ask(door, "getPool", "nobody wants it", 404, path={"id": "other"})
    match = {"If-Match": created.headers["etag"]}
    await teller.ask(door, "replacePool", "more slots", 200, path=small, headers=match, body={**new, "slots": 8})
    await teller.ask(door, "replacePool", "it was changed meanwhile", 412, path=small, headers=match, body=new)
    await teller.ask(door, "replacePool", "another pool's name", 400, path={"id": "p1"}, body=new)
    await teller.ask(door, "reloadPool", "no model given", 400, path=small, body={})
    await teller.ask(door, "reloadPool", "another model", 202, path=small, body={"new_model_ref": "file:newer.gguf"})
    await teller.ask(door, "reloadPool", "one is under way", 409, path=small, body={"new_model_ref": "file:x.gguf"})
    await teller.ask(door, "drainPool", "within a minute", 202, path={"id": "p1"}, body={"deadline_ms": 60_000})
    await teller.ask(door, "drainPool", "no time given", 400, path={"id": "p1"}, body={})
    await teller.ask(door, "undrainPool", "it serves again", 204, path={"id": "p1"})
    await teller.ask(door, "undrainPool", "nobody wants it", 404, path={"id": "other"})
    await teller.ask(door, "getPoolHealth", "it serves", 200, path={"id": "vectors"})
    await teller.ask(door, "getPoolHealth", "nobody wants it", 404, path={"id": "other"})
    await teller.ask(door, "deletePool", "gone", 204, path=small)
    await teller.ask(door, "deletePool", "nobody wants it", 404, path={"id": "other"})


async def _tenants(teller: Teller, door: Door) -> None:
    blue = {"id": "blue"}
    body = {"weight": 5, "max_concurrent": 4, "rps": 2}
    await teller.ask(door, "putTenant", "weight and quotas", 200, path=blue, body={"id": "blue", **body})
    await teller.ask(door, "putTenant", "no weight", 400, path=blue, body={"id": "blue", "weight": 0})
    await teller.ask(door, "getTenant", "one", 200, path=blue)
    await teller.ask(door, "getTenant", "without limits of its own", 404, path={"id": "red"})
    await teller.ask(door, "listTenants", "all", 200)
    await teller.ask(door, "deleteTenant", "like every other now", 204, path=blue)
    await teller.ask(door, "deleteTenant", "no name", 400, path={"id": "no tenant"})


async def _artifacts(teller: Teller, door: Door) -> None:
    plan = {"kind": "plan", "content": {"steps": ["measure", "cut"]}, "tags": ["house"]}
    kept = (await teller.ask(door, "createArtifact", "a plan", 201, body=plan)).json()
    await teller.ask(door, "createArtifact", "a kind that is none", 400, body={**plan, "kind": "poem"})
    await teller.ask(door, "getArtifact", "whole", 200, path={"id": kept["id"]})
    await teller.ask(door, "getArtifact", "nobody has it", 404, path={"id": f"sha256:{0:064x}"})
    await teller.ask(door, "listArtifacts", "by tag", 200, query={"tag": "house"})


async def _catalog(teller: Teller, cluster: Cluster, door: Door) -> None:
    model = {
        "id": "smol",
        "digest": f"sha256:{7:064x}",
        "source_url": MODEL,
        "tags": ["small"],
    }
    smol = {"id": "smol"}
    await teller.ask(door, "createCatalogModel", "new", 201, body=model)
    strict = {"X-Trust-Policy": "strict"}
    unsigned = {**model, "id": "unsigned"}
    await teller.ask(door, "createCatalogModel", "nobody vouches for it", 400, headers=strict, body=unsigned)
    await teller.ask(door, "listCatalogModels", "all", 200)
    await teller.ask(door, "getCatalogModel", "one", 200, path=smol)
    await teller.ask(door, "getCatalogModel", "nobody knows it", 404, path={"id": "other"})
    await teller.ask(door, "verifyCatalogModel", "no node has it", 503, path=smol)

    async def begins(_message: Message) -> tuple[bytes, dict[str, str]]:
        return msgspec.json.encode(VerifyAnswer(started=True)), {}

    await cluster.bus.serve(subjects.provision_verify("node"), begins)
    await settle()
    await teller.ask(door, "verifyCatalogModel", "begun", 202, path=smol)
    await teller.ask(door, "verifyCatalogModel", "nobody knows it", 404, path={"id": "other"})
    retired = {"state": "Retired", "deadline_ms": 60_000}
    await teller.ask(door, "setCatalogModelState", "retired within a minute", 202, path=smol, body=retired)
    await teller.ask(door, "setCatalogModelState", "a state that is none", 400, path=smol, body={"state": "Gone"})
    await teller.ask(door, "deleteCatalogModel", "gone", 204, path=smol)
    await teller.ask(door, "deleteCatalogModel", "nobody knows it", 404, path={"id": "other"})


async def _history(teller: Teller, cluster: Cluster, door: Door) -> None:
    with anyio.fail_after(WITHIN_S):
        while not await cluster.bus.replay(streams.AUD, subjects.audits_of_task(TASK.format(1))):
            await anyio.sleep(0.02)
    await teller.ask(door, "listAudit", "what became of a task", 200, query={"task": TASK.format(1), "limit": "2"})
    await teller.ask(door, "listAudit", "an event that is none", 400, query={"event": "birthday"})


async def _process(teller: Teller, door: Door) -> None:
    await teller.ask(door, "getMetrics", "for Prometheus", 200)
    await teller.ask(door, "getLiveness", "alive", 200)
    await teller.ask(door, "getReadiness", "ready", 200)
    await teller.ask(door, "listContracts", "both", 200)
    await teller.ask(door, "getContract", "one", 200, path={"plane": "data.json"})
    await teller.ask(door, "getContract", "no such document", 404, path={"plane": "other.json"})


async def _strangers(teller: Teller, door: Door) -> None:
    for operation in BY_ID.values():
        if operation.authenticated:
            await teller.ask(door, operation.operation_id, "without a token", 401, path=_some(operation))


async def _too_often(teller: Teller, cluster: Cluster, folder: Path) -> None:
    """Whatever is asked once a token has used up its rate."""
    tokens = folder / "tokens.toml"
    write_tokens(tokens, "requests_per_s = 0.001\nburst = 1", alice="blue")
    door = await cluster.gateway(token="static", tokens_file=str(tokens))
    alice = {"Authorization": bearer("alice-token")["authorization"]}
    await door.get("/v1/capabilities", authorization=alice["Authorization"])
    for operation in BY_ID.values():
        if operation.authenticated:
            await teller.ask(door, operation.operation_id, "too often", 429, path=_some(operation), headers=alice)


def _some(operation: Operation) -> dict[str, str] | None:
    """Any path of it: these callers do not get as far."""
    values = {"plane": "data.json"}
    given = {p.name: values.get(p.name, "x") for p in operation.parameters if p.where == "path"}
    return given or None
