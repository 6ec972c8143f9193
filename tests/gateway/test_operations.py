"""What a caller gave, checked against an operation's row: the same for both doors."""

from typing import Annotated

import msgspec
import pytest
from msgspec import Meta

from llorch_gateway.call import Call
from llorch_gateway.operations import Ask, asked_on_the_bus, asked_over_http
from llorch_shared.errors import OrchError
from llorch_shared.http_api import Operation, Parameter, Plane


class Wish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    deadline_ms: int


CALL = Call("c", "bus", "nats", "default")
DRAIN = Operation(
    method="POST",
    path="/v1/things/{id}",
    operation_id="doThing",
    twin="things.do",
    plane=Plane.CONTROL,
    requirements=(),
    summary="",
    parameters=(
        Parameter(
            name="id",
            where="path",
            type=Annotated[str, Meta(pattern="^[a-z]+$")],
            description="",
            required=True,
            twin="thing_id",
        ),
        Parameter(name="limit", where="query", type=Annotated[int, Meta(ge=1, le=10)], description=""),
        Parameter(name="X-Trust-Policy", where="header", type=str, description=""),
    ),
    request=Wish,
    replies=(),
)
LOOK = msgspec.structs.replace(DRAIN, operation_id="lookAtThing", request=None)


def over_http(operation: Operation = DRAIN, *, thing: str = "abc", body: bytes = b"", **query: str) -> Ask:
    return asked_over_http(
        operation, CALL, path={"id": thing}, query=query, headers={"x-trust-policy": "strict"}, body=body
    )


def test_both_doors_give_the_handler_the_same() -> None:
    told = over_http(limit="3", body=b'{"deadline_ms": 5}')
    asked = asked_on_the_bus(
        DRAIN, CALL, b'{"thing_id": "abc", "limit": 3, "trust_policy": "strict", "deadline_ms": 5}'
    )
    assert told.given == asked.given == {"id": "abc", "limit": 3, "X-Trust-Policy": "strict"}
    assert told.body(Wish) == asked.body(Wish) == Wish(5)


def test_what_was_not_given_is_absent() -> None:
    assert asked_over_http(LOOK, CALL, path={"id": "abc"}, query={}, headers={}, body=b"").given == {"id": "abc"}
    assert asked_on_the_bus(LOOK, CALL, b'{"thing_id": "abc"}').given == {"id": "abc"}


@pytest.mark.parametrize(
    ("operation", "payload", "told"),
    [
        (DRAIN, b"{", "truncated"),
        (DRAIN, b"", "thing_id: it is required"),
        (DRAIN, b"[]", "Expected `object`"),
        (DRAIN, b'{"thing_id": "ABC"}', "id: "),
        (DRAIN, b'{"thing_id": "abc", "limit": 11}', "limit: "),
        (LOOK, b'{"thing_id": "abc", "deadline_ms": 5}', "this operation has no field 'deadline_ms'"),
        (LOOK, b"\xff", "malformed"),
    ],
)
def test_what_the_row_does_not_permit_is_refused_on_the_bus(operation: Operation, payload: bytes, told: str) -> None:
    with pytest.raises(OrchError, match=told) as refused:
        asked_on_the_bus(operation, CALL, payload)
    assert refused.value.status == 400


@pytest.mark.parametrize(("thing", "limit"), [("ABC", "1"), ("abc", "0"), ("abc", "many"), ("abc", "")])
def test_what_the_row_does_not_permit_is_refused_over_http(thing: str, limit: str) -> None:
    with pytest.raises(OrchError) as refused:
        over_http(thing=thing, limit=limit)
    assert refused.value.status == 400


def test_a_body_of_another_form_is_refused_by_its_field() -> None:
    with pytest.raises(OrchError, match="deadline"):
        over_http(body=b'{"deadline": 5}').body(Wish)
