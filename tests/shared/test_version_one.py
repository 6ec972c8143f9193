"""Messages of version 1, as the release before wrote them: read today, written as then, and told apart from newer ones.

`wire/v1/messages.jsonl` was recorded on the bus of that release, one message of each kind; `wire/v1/schemas.json` are
its schemas. Neither is ever written again.
"""

import json
from typing import Any, Final

import jsonschema
import msgspec
import pytest

from llorch_shared.errors import ErrorBody
from llorch_shared.wire import audit, frames, registry, run, spec, task
from llorch_shared.wire.version import (
    VERSION_HEADER,
    VERSIONS,
    Kind,
    NewerVersion,
    check_version,
    decode,
    version_headers,
)
from support.client import task_request
from support.wire_v1 import V1, conforms

KINDS: Final = {
    "TaskRequest": Kind.ADMISSION,
    "Placement": Kind.PLACEMENT,
    "RunRecord": Kind.RUN,
    "PoolSpec": Kind.SPEC,
    **dict.fromkeys(("RunFloor", "LeaseRecord", "NodeRecord", "ReplicaRecord", "SchedulerRecord"), Kind.REGISTRY),
}
"""Types whose messages say their version."""


class Recorded(msgspec.Struct, frozen=True):
    kind: str
    type: str
    subject: str
    headers: dict[str, str]
    data: str

    @property
    def json(self) -> str:
        """Its payload; of a frame the data of its event."""
        return frames.split_events(self.data.encode())[0].data.decode() if self.kind.startswith("frame_") else self.data


RECORDED: Final = [
    msgspec.json.decode(line, type=Recorded) for line in (V1 / "messages.jsonl").read_text().splitlines()
]
EVERY: Final = pytest.mark.parametrize("message", RECORDED, ids=[one.kind for one in RECORDED])


def type_of(name: str) -> Any:
    for module in (audit, frames, registry, run, spec, task):
        if hasattr(module, name):
            return getattr(module, name)
    assert name == "ErrorBody"
    return ErrorBody


def read(message: Recorded) -> Any:
    decoder = msgspec.json.Decoder(type_of(message.type))
    if message.type in KINDS:
        return decode(KINDS[message.type], decoder, message.json.encode(), message.headers)
    return decoder.decode(message.json)


def contains(larger: Any, smaller: Any) -> bool:
    """Whether everything said by `smaller` is said by `larger`, too; an empty text is nothing."""
    if isinstance(smaller, dict):
        return isinstance(larger, dict) and all(contains(larger.get(key, ""), value) for key, value in smaller.items())
    return bool(larger == smaller)


@EVERY
def test_every_recorded_message_is_read_and_means_the_same(message: Recorded) -> None:
    written = json.loads(msgspec.json.encode(read(message)))
    assert contains(written, json.loads(message.json))


@EVERY
def test_what_is_written_today_without_new_fields_is_taken_by_the_release_before(message: Recorded) -> None:
    value = read(message)
    conforms(message.type, json.loads(msgspec.json.encode(value)))
    kind = KINDS.get(message.type)
    if kind is not None:
        request = value.run.request if message.type == "Placement" else getattr(value, "request", None)
        request = value if message.type == "TaskRequest" else request
        assert version_headers(kind, request) == {VERSION_HEADER: "1"}


@EVERY
def test_the_recorded_messages_are_of_the_frozen_schemas(message: Recorded) -> None:
    conforms(message.type, json.loads(message.json))
    assert message.headers.get(VERSION_HEADER, "1") == "1"


def test_every_kind_that_says_a_version_was_recorded() -> None:
    assert {KINDS[one.type] for one in RECORDED if one.type in KINDS} == set(Kind)
    assert {one.kind for one in RECORDED if one.kind.startswith("frame_")} == {
        f"frame_{event}" for event in ("started", "token", "metrics", "end", "error")
    }


@pytest.mark.parametrize("failover", [task.Failover.RESTART, task.Failover.FAIL])
def test_a_new_field_makes_a_message_that_the_release_before_refuses_as_newer(
    failover: task.Failover, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = task_request(failover=failover)
    with pytest.raises(jsonschema.ValidationError):
        conforms("TaskRequest", json.loads(msgspec.json.encode(request)))
    headers = version_headers(Kind.ADMISSION, request)
    monkeypatch.setitem(VERSIONS, Kind.ADMISSION, 1)
    with pytest.raises(NewerVersion):
        check_version(Kind.ADMISSION, headers)
