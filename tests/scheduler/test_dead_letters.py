"""Poison among good tasks: set aside and on the record, and the queue goes on as if it had not been there."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import nats
import pytest

from llorch_ctl import dead_letters
from llorch_scheduler.core.effects import Effect
from llorch_scheduler.core.scheduler import SchedulerCore
from llorch_shared import streams, subjects
from llorch_shared.errors import ErrorCode
from llorch_shared.wire.dead import DeadLetter, Reason, decode_letter
from llorch_shared.wire.frames import Kind as FrameKind
from llorch_shared.wire.frames import peek
from llorch_shared.wire.registry import FLOOR_DECODER
from llorch_shared.wire.task import Priority, TaskState
from llorch_shared.wire.version import VERSION_HEADER, VERSIONS, Kind
from scheduler.world import Node, Process, Town, request, town
from support.bus_worlds import MemoryWorld, NatsWorld, World, becomes_true, eventually

SUBJECT = subjects.admission("p1", "interactive", "default")
QUEUE = streams.admission_stream("p1", Priority.INTERACTIVE)
NEWER = {VERSION_HEADER: str(VERSIONS[Kind.ADMISSION] + 1)}


@pytest.fixture(params=["memory", pytest.param("nats", marks=pytest.mark.nats)])
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Town]:
    one: World = NatsWorld(request.getfixturevalue("nats_server")) if request.param == "nats" else MemoryWorld()
    async with town(one) as made:
        yield made


async def letters(place: Town) -> list[DeadLetter]:
    messages = await place.client.bus.replay(streams.DEAD, subjects.ALL_DEAD_LETTERS)
    return [decode_letter(message.subject, message.data, message.headers) for message in messages]


async def serve(place: Town) -> tuple[Process, Node]:
    process = await place.scheduler()
    node = await place.node(slots=1)
    node.ends_at_once = True
    await eventually(lambda: process.active)
    return process, node


async def poison(place: Town, data: bytes, headers: dict[str, str] | None = None) -> None:
    bus = place.client.bus

    async def stored() -> bool:
        try:
            await bus.store(SUBJECT, data, headers=headers)
        except Exception as error:
            if "no stream" in str(error):
                return False
            raise
        return True

    await becomes_true(stored)


async def until_left(place: Town, count: int) -> None:
    """So many messages are in the queue."""

    async def left() -> bool:
        return (await place.client.bus.stream_state(QUEUE)).messages == count

    await becomes_true(left)


async def until_empty(place: Town) -> None:
    await until_left(place, 0)


def deep(task_id: str = "") -> bytes:
    return b'{"task_id": "%b", "prompt": ' % task_id.encode() + b"[" * 200_000


async def test_poison_among_good_tasks_is_set_aside_and_holds_up_none(place: Town) -> None:
    process, node = await serve(place)
    good = [request() for _ in range(6)]
    bad: list[tuple[bytes, dict[str, str]]] = [
        (b"\xff\xfe garbage", {}),
        (json.dumps(msgspec.to_builtins(request())).encode(), NEWER),
        (deep(), {}),
        (b"x" * 1_040_000, {}),
        (b"", {"Only": "headers"}),
    ]
    await place.client.admit(good[0])
    for task, (data, headers) in zip(good[1:], bad, strict=True):
        await poison(place, data, headers)
        await place.client.admit(task)
    await eventually(lambda: len(place.client.finals) == len(good))
    assert node.claims == [task.task_id for task in good], "not in order of admission"
    await until_empty(place)
    found = await letters(place)
    assert [letter.reason for letter in found] == [
        Reason.UNDECODABLE,
        Reason.UNKNOWN_VERSION,
        Reason.UNDECODABLE,
        Reason.TOO_LARGE,
        Reason.UNDECODABLE,
    ]
    assert [letter.data for letter in found] == [data for data, _ in bad]
    assert found[4].headers["Only"] == "headers"
    assert found[0].actor == f"scheduler/{process.scheduler.instance}"
    assert (await place.client.audited("p1")).count("dead_lettered") == 5
    counted = process.metrics.registry.get_sample_value(
        "dead_letters_total", {"kind": "admission", "reason": "undecodable"}
    )
    assert counted == 3


async def test_poison_that_names_its_task_ends_it_with_an_error_and_is_a_letter_too(place: Town) -> None:
    await serve(place)
    surprising = msgspec.to_builtins(request()) | {"surprise": 1}
    too_large = {"task_id": str(uuid.uuid4()), "prompt": "x" * 1_010_000}
    by_header = str(uuid.uuid4())
    await poison(place, json.dumps(surprising).encode(), {subjects.LANE_HEADER: "gw-1"})
    await poison(place, json.dumps(too_large).encode())
    await poison(place, deep(), {"Nats-Msg-Id": by_header})
    tasks = [surprising["task_id"], too_large["task_id"], by_header]
    await eventually(lambda: set(place.client.finals) == set(tasks))
    assert all(states == [TaskState.FAILED] for states in place.client.finals.values())
    for task_id in tasks:
        run = await place.client.run_of(task_id)
        assert run is not None
        assert run.error is not None
        assert run.error.code is ErrorCode.INVALID_PARAMS
    await eventually(lambda: tasks[0] in place.client.frames)
    assert peek(place.client.frames[tasks[0]][-1]).kind is FrameKind.ERROR
    await until_empty(place)
    assert [letter.task_id for letter in await letters(place)] == tasks
    assert "dead_lettered" in await place.client.audited(tasks[0])


async def test_what_can_be_read_and_is_refused_is_no_letter(place: Town) -> None:
    await serve(place)
    late, elsewhere = request(deadline_ms=0), request()
    await place.client.admit(late)
    await place.client.bus.store("llorch.adm.p1.interactive.NOT-A-NAME", encoded(elsewhere))
    await eventually(lambda: set(place.client.finals) == {late.task_id, elsewhere.task_id})
    run = await place.client.run_of(elsewhere.task_id)
    assert run is not None
    assert run.tenant == "default"
    await until_empty(place)
    assert await letters(place) == []


def encoded(task: Any) -> bytes:
    return msgspec.json.encode(task)


async def test_a_newer_version_runs_when_it_is_replayed_to_who_reads_it(
    place: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, node = await serve(place)
    task = request()
    await place.client.publish("p1", "interactive", encoded(task), msg_id=task.task_id)
    await eventually(lambda: task.task_id in place.client.finals)
    newer = request()
    await poison(place, encoded(newer), {**NEWER, "Nats-Msg-Id": newer.task_id, subjects.LANE_HEADER: "gw-1"})
    await until_empty(place)
    assert await place.client.run_of(newer.task_id) is None, "nothing was read of it"
    (kept,) = await dead_letters.each(place.client.bus, reason=Reason.UNKNOWN_VERSION)
    whole = await dead_letters.one(place.client.bus, kept.id)
    assert whole is not None
    await dead_letters.replay(place.client.bus, whole)
    await until_empty(place)
    (again,) = await dead_letters.each(place.client.bus)
    assert again.id > kept.id, "still newer: it is a letter again"
    monkeypatch.setitem(VERSIONS, Kind.ADMISSION, int(NEWER[VERSION_HEADER]))
    whole = await dead_letters.one(place.client.bus, again.id)
    assert whole is not None
    await dead_letters.replay(place.client.bus, whole)
    await eventually(lambda: newer.task_id in place.client.finals)
    assert node.claims == [task.task_id, newer.task_id]
    run = await place.client.run_of(newer.task_id)
    assert run is not None
    assert run.lane == "gw-1", "its headers came along"
    assert await letters(place) == []
    assert sorted(await place.client.audited("p1")) == ["dead_lettered"] * 2 + ["letter_replayed"] * 2


async def test_a_letter_whose_task_has_ended_is_not_replayed(place: Town) -> None:
    await serve(place)
    bad = msgspec.to_builtins(request()) | {"surprise": 1}
    await poison(place, json.dumps(bad).encode())
    await eventually(lambda: bad["task_id"] in place.client.finals)
    await until_empty(place)
    (kept,) = await dead_letters.each(place.client.bus)
    with pytest.raises(dead_letters.Hopeless, match="has ended"):
        await dead_letters.replay(place.client.bus, kept)
    assert len(await letters(place)) == 1


async def test_a_queue_goes_on_while_letters_cannot_be_stored() -> None:
    async with town(MemoryWorld()) as place:
        await serve(place)
        hidden = place.world.server.streams.pop(streams.DEAD)  # type: ignore[attr-defined]
        await poison(place, b"garbage")
        named = msgspec.to_builtins(request()) | {"surprise": 1}
        await poison(place, json.dumps(named).encode())
        task = request()
        await place.client.admit(task)
        await eventually(lambda: set(place.client.finals) == {task.task_id, named["task_id"]})
        await until_left(place, 2)  # what is no letter yet keeps its place
        place.world.server.streams[streams.DEAD] = hidden  # type: ignore[attr-defined]
        await until_empty(place)
        assert len(await letters(place)) == 2


class Fragile:
    """A core that breaks on one prompt."""

    def __init__(self, core: SchedulerCore) -> None:
        self._core = core

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def handle(self, event: Any) -> list[Effect]:
        if getattr(getattr(event, "request", None), "prompt", "") == "cursed":
            raise KeyError("nobody foresaw this")
        return self._core.handle(event)


async def test_an_admission_on_which_the_core_breaks_is_set_aside_before_the_process_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with town(MemoryWorld()) as place:
        process, _ = await serve(place)
        cursed, fine = request(prompt="cursed"), request()
        for loop in process.scheduler.terms.values():
            monkeypatch.setattr(loop, "core", Fragile(loop.core))
        await place.client.admit(cursed)
        await asyncio.wait({process.task}, timeout=30)
        assert process.task.exception() is not None
        place.processes.remove(process)
        (letter,) = await letters(place)
        assert (letter.reason, letter.problem) == (Reason.UNPROCESSABLE, "'nobody foresaw this'")
        await place.scheduler()
        await place.client.admit(fine)
        await eventually(lambda: fine.task_id in place.client.finals)


async def test_a_task_whose_record_is_garbage_is_set_aside_and_one_of_a_newer_release_is_left_to_it(
    place: Town,
) -> None:
    process, _ = await serve(place)
    lost, theirs, fine = request(), request(), request()
    bus = place.client.bus
    await bus.store(subjects.run(lost.task_id), b"\xff not a record")
    newer = await bus.store(subjects.run(theirs.task_id), b"\xff a record of tomorrow", headers=NEWER)
    for task in (lost, theirs, fine):
        await place.client.admit(task)
    await eventually(lambda: fine.task_id in place.client.finals)
    await until_empty(place)
    (letter,) = await letters(place)
    assert (letter.reason, letter.data) == (Reason.UNDECODABLE, encoded(lost))
    assert process.metrics.registry.get_sample_value("messages_ignored_total", {"kind": "run"}) == 1
    more = request()
    await place.client.admit(more)
    await eventually(lambda: more.task_id in place.client.finals)
    key = subjects.floor_key(subjects.shard_of("p1"))
    floors = []

    async def written() -> bool:
        message = await bus.last(streams.REG, subjects.registry(key))
        floors[:] = [FLOOR_DECODER.decode(message.data).seq] if message is not None else []
        return floors == [newer.seq]

    await becomes_true(written)


@pytest.mark.nats
async def test_a_scheduler_killed_between_letter_and_ack_leaves_one_letter(nats_server) -> None:  # type: ignore[no-untyped-def]
    async with town(NatsWorld(nats_server)) as place:
        environment = {**os.environ, "NATS_URL": nats_server.url, "LLORCH_LOG_LEVEL": "warning"}
        stops = (
            "import os, signal\n"
            "from llorch_shared import dead_letters\n"
            "store = dead_letters.DeadLetters.store\n"
            "async def store_and_die(self, letter, stored_ms):\n"
            "    await store(self, letter, stored_ms)\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
            "dead_letters.DeadLetters.store = store_and_die\n"
            "import runpy\n"
            "runpy.run_module('llorch_scheduler', run_name='__main__')\n"
        )
        process = subprocess.Popen([sys.executable, "-c", stops], env=environment)
        try:
            await poison(place, b"garbage")

            async def died() -> bool:
                return process.poll() is not None

            await becomes_true(died, 30)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == -signal.SIGKILL
        assert (await place.client.bus.stream_state(QUEUE)).messages == 1
        assert len(await letters(place)) == 1
        await serve(place)
        task = request()
        await place.client.admit(task)
        await eventually(lambda: task.task_id in place.client.finals)
        await until_empty(place)
        assert len(await letters(place)) == 1
        assert await place.client.audited("p1") == ["dead_lettered"]


@pytest.mark.nats
async def test_headers_that_are_no_text_harm_nobody(nats_server) -> None:  # type: ignore[no-untyped-def]
    async with town(NatsWorld(nats_server)) as place:
        await serve(place)
        connection = await nats.connect(nats_server.url)
        block = b"NATS/1.0\r\nOdd: \xff\xfe\r\nno colon\r\n: nothing\r\nLlorch-Version: tomorrow\r\n\r\n"
        await connection._transport.drain()
        connection._transport.write(
            b"HPUB %b %d %d\r\n%b{}\r\n" % (SUBJECT.encode(), len(block), len(block) + 2, block)
        )
        await connection.flush()
        await connection.close()
        task = request()
        await place.client.admit(task)
        await eventually(lambda: task.task_id in place.client.finals)
        await until_empty(place)
        (letter,) = await letters(place)
        assert letter.reason is Reason.UNDECODABLE
        assert "not a version" in letter.problem
