"""Both OpenAPI documents against a real gateway: whatever is sent, the answer is one that the contract has.

Requests are generated from the documents, valid and broken ones, in bounded number and always the same. Some of the
valid ones are pointed at what exists (a pool, ended and waiting tasks), so that tasks are really admitted, looked up,
streamed and cancelled. The gateway asks for a token: leaving it out or changing it must be refused wherever the
contract says so. The last test checks that the generated requests got that far.
"""

import contextlib
import json
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import jsonschema
import msgspec
import pytest
import requests
import schemathesis
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import response_schema_conformance

from llorch_shared import subjects
from llorch_shared.contracts import openapi, twins
from llorch_shared.http_api import OPERATIONS, Operation, Plane
from llorch_shared.identifiers import is_name, is_uuid
from llorch_shared.wire.frames import split_events
from llorch_shared.wire.openai import ChatCompletionRequest, TextCompletionRequest
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import TaskRequest
from support.client import Transcript, follow, task_request
from support.system import System, mock_pool

pytestmark = [pytest.mark.nats, pytest.mark.system, pytest.mark.timeout(180)]

TOKEN = "t0k3n-of-the-contract-test"
EXAMPLES = 40
CONFIG = SchemathesisConfig.from_dict(
    {
        "request-timeout": 20,
        "generation": {"deterministic": True, "max-examples": EXAMPLES, "no-shrink": True},
        "checks": {
            # A well-formed task may still name a model that nobody serves, or find the queue full; a well-formed
            # change may come too late.
            "positive_data_acceptance": {"expected-statuses": ["2xx", 400, 404, 409, 412, 413, 429, 503]},
            "negative_data_rejection": {"expected-statuses": [400, 401, 404, 405, 413, 415, 503]},
            # DELETE ends a task; what became of it stays readable for 72 hours.
            "use_after_free": {"enabled": False},
        },
    }
)
DATA = schemathesis.openapi.from_dict(openapi.document(Plane.DATA), config=CONFIG)
CONTROL = schemathesis.openapi.from_dict(openapi.document(Plane.CONTROL), config=CONFIG)
FEW = settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
FEWER = settings(FEW, max_examples=12)
WALKS = settings(
    max_examples=4, stateful_step_count=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)

FAST = mock_pool(replicas=1, slots=8, rate=0)
SLOW = mock_pool("slow", replicas=1, slots=1, rate=0.2, model="mock:slow")
SERVED = ("messages", "prompt", "stream", "stop", "seed", "temperature", "top_p", "user")
ended: list[str] = []
waiting: list[str] = []
answers: Counter[tuple[str, int]] = Counter()
"""(operation, status) → how often."""
bus_answers: Counter[tuple[str, str]] = Counter()
"""(operation, status of the refusal or nothing) → how often, on the bus."""
portals: list[BlockingPortal] = []
"""The thread of the system's event loop."""
TWINS = {(operation.method, operation.path): operation for operation in OPERATIONS if operation.twin}


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system with a fast and a slow pool, a token, and tasks of both; its event loop lives in another thread."""
    system = System(
        tmp_path_factory.mktemp("contract"),
        pools=[FAST, SLOW],
        token=TOKEN,
        settings={"gateway": {"auth_optional": False}},
    )

    async def admit() -> None:
        client = system.client()
        ended.extend([(await client.submit(max_tokens=5)).task_id for _ in range(4)])
        waiting.extend([(await client.submit(model_ref=SLOW.model, max_tokens=500)).task_id for _ in range(12)])
        for task_id in ended:
            await follow(system.clients, task_id)

    with (
        start_blocking_portal("asyncio", {"use_uvloop": True}) as portal,
        portal.wrap_async_context_manager(system),
    ):
        portal.call(admit)
        portals.append(portal)
        yield system


@pytest.fixture(scope="module")
def base_url(system: System) -> str:
    return system.url()


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as opened:
        opened.headers["Authorization"] = f"Bearer {TOKEN}"
        yield opened


@DATA.hook
def map_body(context: Any, body: Any) -> Any:
    """Point valid tasks with an even context, and half of the valid completions, at the pool that exists."""
    for kind in (ChatCompletionRequest, TextCompletionRequest):
        with contextlib.suppress(msgspec.ValidationError):
            wish = msgspec.convert(body, kind)
            asks = {name: value for name, value in body.items() if name in SERVED}
            asks |= {"messages": [{"role": "user", "content": "Hi"}]} if "messages" in asks else {}
            return {**asks, "model": FAST.model, "max_tokens": 5} if len(wish.model) % 2 else body
    try:
        request = msgspec.convert(body, TaskRequest)
    except msgspec.ValidationError:
        return body
    if request.ctx % 2:
        return body
    served = msgspec.to_builtins(task_request(task_id=request.task_id, session_id=request.session_id))
    return {name: value for name, value in body.items() if name not in ("placement", "inputs")} | served


@DATA.hook("map_path_parameters")
def existing_task(context: Any, path_parameters: Any) -> Any:
    """Half of the well-formed task ids become ids of tasks; streams are only of ended ones."""
    if not (path_parameters and ended and is_uuid(str(path_parameters.get("id")))):
        return path_parameters
    choice = int(path_parameters["id"][:8], 16)
    tasks = ended if context.operation.path.endswith("/stream") else [*ended, *waiting]
    return {**path_parameters, "id": tasks[choice // 2 % len(tasks)]} if choice % 2 else path_parameters


@CONTROL.hook("map_body")
def harmless_pool(context: Any, body: Any) -> Any:
    """Valid pools are wanted where no node is, and are all one."""
    try:
        msgspec.convert(body, PoolSpec)
    except msgspec.ValidationError:
        return body
    return {**body, "id": "generated", "nodes": ["nowhere"], "queue": {"capacity": 1}, "admission": {}}


@CONTROL.hook("map_path_parameters")
def existing_pool(context: Any, path_parameters: Any) -> Any:
    """Only to be looked at: other tests need it as it is."""
    if context.operation.method.upper() != "GET":
        return path_parameters
    if path_parameters and is_name(str(path_parameters.get("id"))) and len(path_parameters["id"]) % 2:
        return {**path_parameters, "id": FAST.id}
    return path_parameters


@DATA.hook("after_call")
@CONTROL.hook("after_call")
def count_answer(context: Any, case: schemathesis.Case, response: schemathesis.Response) -> None:
    answers[f"{case.method} {case.operation.path}", response.status_code] += 1


@DATA.parametrize()
@FEW
def test_the_data_plane_answers_as_its_contract_says(
    case: schemathesis.Case, base_url: str, session: requests.Session
) -> None:
    streams = case.operation.path.endswith("/stream")
    response = case.call_and_validate(
        base_url=base_url,
        session=session,
        # It reads the schema as one event's.
        excluded_checks=[response_schema_conformance] if streams or asks_for_stream(case) else [],
    )
    if streams and response.status_code == 200:
        check_frames(response.content)


def asks_for_stream(case: schemathesis.Case) -> bool:
    return isinstance(case.body, dict) and case.body.get("stream") is True


def check_frames(body: bytes) -> None:
    """Every event has the data of its wire type, in order, up to exactly one terminal event."""
    transcript = Transcript("generated")
    for event in split_events(body):
        transcript.add(event)
    assert transcript.finished


@CONTROL.parametrize()
@FEW
def test_the_control_plane_answers_as_its_contract_says(
    case: schemathesis.Case, base_url: str, session: requests.Session
) -> None:
    case.call_and_validate(base_url=base_url, session=session)


@DATA.parametrize()
@FEWER
def test_the_bus_takes_the_data_planes_requests_as_http_does(case: schemathesis.Case, system: System) -> None:
    ask_on_the_bus(case, system)


@CONTROL.parametrize()
@FEWER
def test_the_bus_takes_the_control_planes_requests_as_http_does(case: schemathesis.Case, system: System) -> None:
    ask_on_the_bus(case, system)


def ask_on_the_bus(case: schemathesis.Case, system: System) -> None:
    """The generated request as its twin takes it: answered in the twin's form, and never with an internal error."""
    operation = TWINS.get((case.method, case.operation.path))
    if operation is None:
        return
    given = {"path": case.path_parameters, "query": case.query, "header": case.headers}
    flat = {
        parameter.key: given[parameter.where][parameter.name]
        for parameter in operation.parameters
        if parameter.name in (given[parameter.where] or {})
    }
    body = case.body if operation.request is not None and isinstance(case.body, dict) else {}
    payload = json.dumps({**body, **flat}, default=str).encode()
    answer = portals[0].call(partial(system.bus.request, subjects.api(operation.twin), payload, timeout_s=20))
    status = answer.headers.get("Nats-Service-Error-Code", "")
    bus_answers[f"{case.method} {case.operation.path}", status] += 1
    assert status != "500", answer.data
    if answer.data:
        _answers_of(operation).validate(json.loads(answer.data))


@cache
def _answers_of(operation: Operation) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads(twins.answer_schema_text(operation)))


def test_a_task_can_be_followed_from_its_admission_to_its_end(base_url: str, session: requests.Session) -> None:
    """Walks along the contract's links: submit, then get, stream, cancel in any order."""

    class Walk(DATA.as_state_machine()):  # type: ignore[misc]
        def get_call_kwargs(self, case: schemathesis.Case) -> dict[str, Any]:
            return {"base_url": base_url, "session": session}

        def validate_response(self, response: Any, case: schemathesis.Case, *_: Any, **kwargs: Any) -> None:
            case.validate_response(
                response,
                excluded_checks=[response_schema_conformance]
                if case.operation.path.endswith("/stream") or asks_for_stream(case)
                else [],
                transport_kwargs=kwargs,
            )

    Walk.run(settings=WALKS)


@pytest.mark.parametrize(
    "answer",
    [
        ("POST /v1/tasks", 202),
        ("POST /v1/tasks", 400),
        ("GET /v1/tasks/{id}", 200),
        ("GET /v1/tasks/{id}", 404),
        ("GET /v1/tasks/{id}/stream", 200),
        ("POST /v1/tasks/{id}/cancel", 204),
        ("DELETE /v1/tasks/{id}", 204),
        ("POST /v1/chat/completions", 200),
        ("POST /v1/chat/completions", 400),
        ("POST /v1/completions", 200),
        ("GET /v1/models", 200),
        ("GET /v1/pools", 200),
        ("POST /v1/pools", 201),
        ("GET /v1/pools/{id}", 200),
        ("POST /v1/pools/{id}/drain", 404),
        ("PUT /v1/tenants/{id}", 400),
        ("GET /v1/pools/{id}/health", 200),
        ("GET /v1/pools/{id}/health", 404),
        ("GET /v1/capabilities", 200),
        ("GET /v1/capabilities", 401),
        ("GET /metrics", 200),
    ],
    ids=str,
)
def test_the_generated_requests_reached(answer: tuple[str, int]) -> None:
    assert answers[answer] > 0, f"seen: {sorted(answers.items())}"


@pytest.mark.parametrize(
    "answer",
    [
        ("POST /v1/tasks", ""),
        ("POST /v1/tasks", "400"),
        ("GET /v1/tasks/{id}", ""),
        ("GET /v1/tasks/{id}", "404"),
        ("POST /v1/tasks/{id}/cancel", ""),
        ("GET /v1/pools/{id}/health", ""),
        ("GET /v1/capabilities", ""),
    ],
    ids=str,
)
def test_the_generated_requests_reached_it_on_the_bus(answer: tuple[str, str]) -> None:
    assert bus_answers[answer] > 0, f"seen: {sorted(bus_answers.items())}"


def test_no_stream_is_left_behind(system: System) -> None:
    """Who asked has had its answer, so nothing is read for anybody any more."""

    async def none_is_open() -> bool:
        return await system.metric("gateway-1", "sse_streams_open") == 0

    portals[0].call(system.until, none_is_open, "no open stream", 30)


def test_without_a_bus_the_answers_are_still_those_of_the_contract(system: System, base_url: str) -> None:
    """What needs the nats-server, which is away, answers 503 in the documented form; the rest goes on."""
    unknown = {"id": str(uuid.uuid4())}
    cases = [
        (DATA["/v1/tasks"]["POST"].Case(body=msgspec.to_builtins(task_request()), media_type="application/json"), 503),
        (DATA["/v1/tasks/{id}"]["GET"].Case(path_parameters=unknown), 503),
        (DATA["/v1/tasks/{id}/stream"]["GET"].Case(path_parameters=unknown), 503),
        (DATA["/v1/tasks/{id}/cancel"]["POST"].Case(path_parameters=unknown), 503),
        (CONTROL["/readyz"]["GET"].Case(), 503),
        (CONTROL["/healthz"]["GET"].Case(), 200),
        (CONTROL["/metrics"]["GET"].Case(), 200),
        (CONTROL["/v1/capabilities"]["GET"].Case(), 200),
    ]
    system.kill9("nats")
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with ThreadPoolExecutor(len(cases)) as threads:
        responses = list(threads.map(lambda one: one[0].call(base_url=base_url, headers=headers), cases))
    system.nats.start()  # so that the system can end in order
    for (case, status), response in zip(cases, responses, strict=True):
        case.validate_response(response, excluded_checks=[not_a_server_error])
        assert response.status_code == status, f"{case.method} {case.path}: {response.status_code} {response.text}"
