"""The pact from both sides: what the command line's client would write today, and a real gateway that is asked it all.

States are made by public means alone: tasks, pools, and the mock engine's own switch for faults.
"""

import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from pact import Verifier

from contract import pacts
from llorch_shared import subjects
from llorch_shared.contracts import openapi
from llorch_shared.http_api import Plane
from llorch_shared.objects import entry_of
from llorch_shared.wire.objects import ObjectRef
from llorch_shared.wire.task import Priority
from support.client import follow, task_request
from support.system import System, mock_pool

pytestmark = [pytest.mark.nats, pytest.mark.system, pytest.mark.timeout(180)]

T = TypeVar("T")
WITHIN_S = 30
IDLE_MS = 3_000
BUSY = mock_pool("busy", replicas=1, slots=1, rate=1, capacity=1, model="mock:busy")
DROPPING = mock_pool(
    "dropping",
    replicas=1,
    slots=1,
    rate=1,
    model="mock:dropping",
    queue={"capacity": 1, "full_policy": "drop-lru"},
)
WORDS = mock_pool(replicas=1, rate=0, timeouts={"idle_ms": IDLE_MS})
NOWHERE = mock_pool("nowhere", model="mock:nowhere", nodes=("elsewhere",))
BROKEN = mock_pool("broken", model="mock:broken", replicas=1, sampler_profile_version="v99")


def test_the_file_is_what_the_clients_expect(tmp_path: Path) -> None:
    assert pacts.write(tmp_path).read_text() == pacts.FILE.read_text(), "run: PYTHONPATH=tests python -m contract.pacts"


def test_every_promise_is_in_the_contract() -> None:
    """Path, method and status, as OpenAPI has them."""
    paths = {**openapi.document(Plane.DATA)["paths"], **openapi.document(Plane.CONTROL)["paths"]}
    for promise in pacts.PROMISES:
        template = next(path for path in paths if _matches(path, promise.path))
        assert str(promise.status) in paths[template][promise.method.lower()]["responses"], promise.title


def _matches(template: str, path: str) -> bool:
    wanted, given = template.split("/"), path.split("/")
    return len(wanted) == len(given) and all(
        want == part or want.startswith("{") for want, part in zip(wanted, given, strict=True)
    )


class Provider:
    """A running system that is brought into the states that the promises name. Called from Pact's threads."""

    def __init__(self, system: System, portal: BlockingPortal) -> None:
        self._system = system
        self._portal = portal
        self._threads: list[threading.Thread] = []

    @property
    def states(self) -> dict[str, Callable[..., None]]:
        made = {
            pacts.READY: self._ready,
            pacts.WAITING: self._waiting,
            pacts.ENDED: self._ended,
            pacts.SPENT: self._spent,
            pacts.FULL: self._full,
            pacts.CROWDED: self._crowded,
            pacts.UNREADY: self._unready,
            pacts.EXHAUSTED: self._exhausted,
            pacts.HANGING: self._hanging,
            pacts.LOST: self._lost,
            pacts.DAMAGED: self._damaged,
            pacts.BUS_AWAY: self._bus_away,
        }
        return {state: self._handler(make) for state, make in made.items()}

    def _handler(self, make: Callable[[], None]) -> Callable[..., None]:
        def handle(state: str, action: str, parameters: dict[str, Any] | None = None) -> None:
            if action == "setup":
                make()

        return handle

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        async def awaited() -> T:
            return await work

        return self._portal.call(awaited)

    def _ready(self) -> None:
        """It is so from the beginning."""

    def _submit(self, model: str, **changes: Any) -> str:
        client = self._system.client()
        return self._run(client.submit(model_ref=model, **changes)).task_id

    def _depth(self, pool: str) -> int:
        health = self._run(self._system.health(pool))
        waiting = {} if health is None else health.metrics
        return int(sum(count for name, count in waiting.items() if name.startswith("queue_depth_")))

    def _fill(self, model: str, pool: str) -> None:
        """One works, and as many wait as may."""
        if self._run(self._system.busy_slots(model)) == 0:
            self._submit(model, max_tokens=500)
            self._until(lambda: self._run(self._system.busy_slots(model)) == 1, f"{model} is busy")

    def _waiting(self) -> None:
        self._fill("mock:busy", "busy")
        self._submit("mock:busy", task_id=pacts.TASK.format(2), max_tokens=500)

    def _full(self) -> None:
        self._fill("mock:busy", "busy")
        self._submit("mock:busy", max_tokens=500)
        self._until(lambda: self._depth("busy") == 1, "the queue is full")

    def _crowded(self) -> None:
        self._fill("mock:dropping", "dropping")

        def come() -> None:
            self._until(lambda: self._depth("dropping") == 1, "the completion waits")
            for _ in Priority:  # the classes share their places
                self._submit("mock:dropping", priority=Priority.BATCH, max_tokens=500)

        self._threads.append(threading.Thread(target=come, name="newcomers"))
        self._threads[-1].start()

    def _ended(self) -> None:
        task = pacts.TASK.format(3)
        self._submit("mock:words", task_id=task, max_tokens=3)
        self._run(follow(self._system.clients, task))

    def _spent(self) -> None:
        client = self._system.client()
        session = f"/v1/sessions/{pacts.TASK.format(13)}"
        self._run(client.http.put(session, json={"tokens_budget": 100})).raise_for_status()

    def _unready(self) -> None:
        self._run(self._system.put_pool(NOWHERE))
        self._until(lambda: self._run(self._system.health("nowhere")) is not None, "the pool is known")

    def _exhausted(self) -> None:
        self._run(self._system.put_pool(BROKEN))

        def failed() -> bool:
            health = self._run(self._system.health("broken"))
            return health is not None and [replica.state for replica in health.replicas] == ["failed"]

        self._until(failed, "its replica has failed")

    def _hanging(self) -> None:
        self._run(self._system.fault("mock:words", {"kind": "hang", "after": 2, "times": 1}))

    def _lost(self) -> None:
        self._run(self._system.fault("mock:words", {"kind": "reset", "after": 2, "times": 1}))

    def _damaged(self) -> None:
        """Somebody stored other bytes under the digest of a prompt."""
        ref = ObjectRef(digest=f"sha256:{0:064x}", bytes=20)
        request = task_request(task_id=pacts.TASK.format(11), prompt=None, payload_ref=ref)
        for subject, data in (
            (subjects.object_chunks("damaged"), b"x" * ref.bytes),
            (subjects.object_entry(ref.digest), msgspec.json.encode(entry_of(ref, "damaged", 1))),
            (subjects.admission("mock", "interactive", "default"), msgspec.json.encode(request)),
        ):
            self._run(self._system.bus.store(subject, data))

    def _bus_away(self) -> None:
        self._system.kill9("nats")

    def _until(self, question: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + WITHIN_S
        while not question():
            assert time.monotonic() < deadline, f"not seen in {WITHIN_S} s: {what}"
            time.sleep(0.05)

    def close(self) -> None:
        for thread in self._threads:
            thread.join(WITHIN_S)
        self._system.nats.start()  # so that the system can end in order


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[System, Provider]]:
    system = System(tmp_path_factory.mktemp("pact"), pools=[WORDS, BUSY, DROPPING])
    with (
        start_blocking_portal("asyncio", {"use_uvloop": True}) as portal,
        portal.wrap_async_context_manager(system),
    ):
        made = Provider(system, portal)
        yield system, made
        made.close()


def test_a_real_gateway_keeps_every_promise(provider: tuple[System, Provider]) -> None:
    system, states = provider
    verifier = (
        Verifier(pacts.PROVIDER, host="127.0.0.1")
        .add_transport(url=system.url())
        .add_source(pacts.FILE)
        .set_request_timeout(30_000)
        .state_handler(states.states)
    )
    verifier.verify()
