"""`orchctl dead`: what was set aside is shown, published again or dropped, each time on the record."""

import json

import msgspec
import pytest

from llorch_ctl.exits import Exit
from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus, Message
from llorch_shared.dead_letters import DeadLetters
from llorch_shared.wire.audit import AUDIT_DECODER
from llorch_shared.wire.dead import What
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Engine, Priority, TaskState
from llorch_shared.wire.version import NewerVersion, Unreadable
from support.client import task_request
from support.nats_server import NatsServer
from support.orchctl import Orchctl, on_bus

pytestmark = pytest.mark.nats

SUBJECT = "llorch.adm.chat.interactive.default"
QUEUE = "ADM_chat_interactive"
CHAT = PoolSpec(id="chat", engine=Engine.MOCK, model="m")


def set_aside(server: NatsServer, *, task_id: str = "", queue: bool = True) -> None:
    """Three letters: garbage, one of a newer version, one with a task."""

    async def store(bus: Bus) -> None:
        if queue:
            await bus.ensure(streams.admission(CHAT))
        dead = DeadLetters(bus, actor="scheduler/1")
        headers = {"Nats-Msg-Id": "m", "X-Correlation-Id": "walk"}
        poison: list[tuple[bytes, Exception, str]] = [
            (b"\xff\x1b[31m", Unreadable("no JSON"), ""),
            (b"{}", NewerVersion("version 2"), ""),
            (b"{}", Unreadable("odd"), task_id),
        ]
        for seq, (data, problem, task) in enumerate(poison, start=1):
            message = Message(subject=SUBJECT, data=data, headers=headers, seq=seq, stored_ms=9)
            await dead.store(dead.letter(What.ADMISSION, "chat", QUEUE, message, problem, task_id=task), 9)

    on_bus(server, store)


def queued(server: NatsServer) -> list[Message]:
    async def read(bus: Bus) -> list[Message]:
        return list(await bus.replay(QUEUE, SUBJECT))

    return on_bus(server, read)


def audited(server: NatsServer) -> list[tuple[str, object, str]]:
    async def read(bus: Bus) -> list[tuple[str, object, str]]:
        records = [AUDIT_DECODER.decode(m.data) for m in await bus.replay(streams.AUD, subjects.ALL_AUDITS)]
        return [(r.event, r.detail["letter"], r.actor) for r in records if r.event.startswith("letter_")]

    return on_bus(server, read)


def test_without_letters_it_says_so(orchctl: Orchctl, nats_server: NatsServer) -> None:
    on_bus(nats_server, lambda bus: bus.stream_state(streams.DEAD))
    assert orchctl("dead", "list") == (Exit.OK, "no dead letters\n", "")
    assert json.loads(orchctl("dead", "list", "--json")[1]) == {"letters": []}
    assert orchctl("dead", "replay", "--all")[:2] == (Exit.OK, "no dead letters\n")
    assert orchctl("dead", "drop", "--all")[:2] == (Exit.OK, "no dead letters\n")


def test_letters_are_listed_and_shown(orchctl: Orchctl, nats_server: NatsServer) -> None:
    set_aside(nats_server)
    code, out, _ = orchctl("dead", "list")
    assert code == Exit.OK
    assert "unknown_version" in out
    assert "no JSON" in out
    told = json.loads(orchctl("dead", "list", "--json", "--reason", "unknown_version")[1])["letters"]
    assert [(letter["id"], letter["reason"], letter["bytes"]) for letter in told] == [(2, "unknown_version", 2)]
    code, out, _ = orchctl("dead", "show", "1")
    assert code == Exit.OK
    assert f"message 1 of {QUEUE}" in out
    assert "header       X-Correlation-Id: walk" in out
    assert "\x1b" not in out, "a letter does not drive the terminal"
    shown = json.loads(orchctl("dead", "show", "1", "--json")[1])
    assert shown["payload_base64"] == "/xtbMzFt"
    assert shown["headers"]["X-Correlation-Id"] == "walk"
    code, _, err = orchctl("dead", "show", "99")
    assert (code, "there is no dead letter 99" in err) == (Exit.FAILED, True)


def test_a_replayed_letter_is_in_its_queue_again_and_gone_from_the_letters(
    orchctl: Orchctl, nats_server: NatsServer
) -> None:
    set_aside(nats_server)
    assert orchctl("dead", "replay", "2", "1")[:2] == (
        Exit.OK,
        f"letter 1 is message 1 of {QUEUE}\nletter 2 is message 2 of {QUEUE}\n",
    )
    found = queued(nats_server)
    assert [message.data for message in found] == [b"\xff\x1b[31m", b"{}"]
    assert found[1].headers["X-Correlation-Id"] == "walk"
    assert found[1].headers["Nats-Msg-Id"] not in ("m", found[0].headers["Nats-Msg-Id"])
    left = json.loads(orchctl("dead", "list", "--json")[1])["letters"]
    assert [letter["id"] for letter in left] == [3]
    assert audited(nats_server) == [("letter_replayed", 1, "orchctl"), ("letter_replayed", 2, "orchctl")]
    assert orchctl("dead", "replay", "2")[0] == Exit.FAILED


def test_a_letter_that_cannot_be_replayed_stays_and_says_why(orchctl: Orchctl, nats_server: NatsServer) -> None:
    request = task_request()
    set_aside(nats_server, task_id=request.task_id, queue=False)
    run = RunRecord(
        task_id=request.task_id,
        state=TaskState.FAILED,
        pool_id="chat",
        lane="bus",
        correlation_id="c",
        tenant="default",
        priority=Priority.BATCH,
        admitted_ms=1,
    )
    on_bus(nats_server, lambda bus: bus.store(subjects.run(request.task_id), msgspec.json.encode(run)))
    code, out, _ = orchctl("dead", "replay", "--all", "--reason", "undecodable", "--json")
    assert code == Exit.FAILED
    first, second = json.loads(out)["letters"]
    assert "has its pool been removed" in first["problem"]
    assert f"{request.task_id} has ended (failed)" in second["problem"]
    assert len(json.loads(orchctl("dead", "list", "--json")[1])["letters"]) == 3


def test_letters_are_dropped_only_when_it_is_meant(
    orchctl: Orchctl, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_aside(nats_server)
    code, _, err = orchctl("dead", "drop", "--all")
    assert (code, "say --yes" in err) == (Exit.USAGE, True)
    assert orchctl("dead", "drop", "1", "--yes")[:2] == (Exit.OK, "1 letter dropped\n")
    code, out, _ = orchctl("dead", "drop", "--all", "--reason", "undecodable", "--yes", "--json")
    assert (code, json.loads(out)) == (Exit.OK, {"dropped": [3]})
    assert audited(nats_server) == [("letter_dropped", 1, "orchctl"), ("letter_dropped", 3, "orchctl")]
    assert [letter["id"] for letter in json.loads(orchctl("dead", "list", "--json")[1])["letters"]] == [2]


@pytest.mark.parametrize("arguments", [("replay",), ("drop",), ("replay", "1", "--all"), ("show", "x")])
def test_what_is_not_chosen_is_wrong_usage(
    orchctl: Orchctl, nats_server: NatsServer, arguments: tuple[str, ...]
) -> None:
    set_aside(nats_server)
    assert orchctl("dead", *arguments)[0] == Exit.USAGE
