"""A node that slept or was cut off: what it had is somebody else's, it says nothing of it and leaves nothing behind."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from llorch_shared import streams, subjects
from llorch_shared.wire.frames import parse_cursor, split_events
from llorch_shared.wire.run import RUN_DECODER, RunRecord
from llorch_shared.wire.task import TaskState
from support.client import follow
from support.link import Link
from support.nats_server import free_port
from support.processes import gone
from support.system import System, mock_pool

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

TOKENS = 2000
RATE = 40
SLOTS = 4
"""Of each node."""
RESTARTS = 3


class Heard:
    """Attempts in the order in which their frames came over the bus, by task."""

    def __init__(self) -> None:
        self.attempts: dict[str, list[int]] = {}

    def frame(self, subject: bytes, data: bytes) -> None:
        said = self.attempts.setdefault(subject.decode().rpartition(".")[2], [])
        said += [parse_cursor(event.id).attempt for event in split_events(data) if event.id]


@pytest.fixture
async def links():  # type: ignore[no-untyped-def]
    made: list[Link] = []
    yield made
    for link in made:
        await link.close()


async def run_of(system: System, task_id: str) -> RunRecord:
    message = await system.bus.last(streams.RUN, subjects.run(task_id))
    assert message is not None
    return RUN_DECODER.decode(message.data)


async def until(system: System, what: str, question: Callable[[], Awaitable[bool]]) -> None:
    await system.until(question, what, 40)


async def running_on(system: System, node: str, tokens: int = TOKENS) -> str:
    """A task that streams on this node: so many are begun that every slot of both nodes has one."""
    count = 2 * SLOTS
    tasks = [(await system.client().submit(max_tokens=tokens, prompt=f"{number}")).task_id for number in range(count)]
    await asyncio.gather(*(system.client().read(task, tokens_max=3) for task in tasks))
    found = [task for task in tasks if (await run_of(system, task)).node_id == node]
    assert found, "no slot of this node was taken"
    await asyncio.gather(*(system.client().cancel(task) for task in tasks if task != found[0]))
    return found[0]


def engines_under(folder: Path) -> list[int]:
    """Every engine process that writes a log of this system, whoever its parent is."""
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            output = Path(os.readlink(process / "fd" / "1"))
        except OSError:
            continue
        if output.parent.name == "engines" and folder in output.parents:
            found.append(int(process.name))
    return found


async def engines_are(system: System, count: int) -> None:
    async def right() -> bool:
        told = sorted(engines_under(system.folder))
        held = sorted(pid for name in ("poold-1", "poold-2") for pid in system.engines_of(name))
        return told == held and len(told) == count

    await until(system, f"{count} engines, each of its node", right)


async def test_a_node_that_slept_or_was_cut_off_says_nothing_more_and_leaves_nothing_behind(
    tmp_path: Path, links: list[Link]
) -> None:
    pool = mock_pool(replicas=1, slots=SLOTS, rate=RATE)
    system = System(tmp_path, pools=[pool], nodes=2)
    link = Link(free_port(), system.nats.port)
    links.append(link)
    await link.start()
    system.processes["poold-2"].environment["NATS_URL"] = link.url
    async with system:
        heard = Heard()
        await system.bus.tail(subjects.ALL_TOKENS, heard.frame)

        # asleep: the engine goes on, and fills the socket of a node that is stopped
        task = await running_on(system, "node-1")
        (engine,) = system.engines_of("poold-1")
        os.kill(engine, signal.SIGSTOP)
        await quiet(heard, task)
        os.kill(system.pid_of("poold-1"), signal.SIGSTOP)
        os.kill(engine, signal.SIGCONT)
        try:
            await until(system, "another attempt to speak", lambda: says(heard, task, 2))
        finally:
            os.kill(system.pid_of("poold-1"), signal.SIGCONT)
        await until(system, "node 1 to speak again", lambda: speaks(system, "poold-1"))
        await goes_on_whole(system, heard, task)
        assert (await run_of(system, task)).node_id == "node-2"
        await engines_are(system, 2)

        # cut off, while its replica is no longer wanted
        task = await running_on(system, "node-2")
        (engine,) = system.engines_of("poold-2")
        link.cut()
        await until(system, "another attempt to speak", lambda: says(heard, task, 2))
        await system.put_pool(mock_pool(replicas=1, slots=SLOTS, rate=RATE, nodes=("node-1",)))
        assert system.engines_of("poold-2") == [engine]
        link.mend()
        await engines_are(system, 1)
        assert gone([engine], 20)
        await goes_on_whole(system, heard, task)
        await system.replicas_ready(pool.id, 1)

        # killed again and again, while its replica is wanted again
        await system.put_pool(pool)
        for _ in range(RESTARTS):
            await until(system, "an engine of node 2", lambda: has_engine(system, "poold-2"))
            system.kill9("poold-2")
            await system.restart("poold-2", wait_ready=False)
        await system.replicas_ready(pool.id, 2)
        await engines_are(system, 2)
        task = await running_on(system, "node-2", tokens=120)
        (await follow(system.clients, task)).check()
        assert (await run_of(system, task)).state is TaskState.DONE


async def goes_on_whole(system: System, heard: Heard, task: str) -> None:
    """Its readers have every token once, and nothing of the first attempt came after the second began."""
    transcript = await system.client().read(task, tokens_max=100)
    transcript.check()
    said = heard.attempts[task]
    assert said == sorted(said)
    await system.client().cancel(task)


async def quiet(heard: Heard, task: str) -> None:
    """The engine is stopped: wait until the node has sent what it had of it."""
    before = -1
    while len(heard.attempts[task]) != before:
        before = len(heard.attempts[task])
        await asyncio.sleep(0.5)


async def says(heard: Heard, task: str, attempt: int) -> bool:
    return heard.attempts[task][-1] == attempt


async def speaks(system: System, name: str) -> bool:
    return await system.metric(name, "node_fenced") == 0


async def has_engine(system: System, name: str) -> bool:
    return bool(system.engines_of(name))
