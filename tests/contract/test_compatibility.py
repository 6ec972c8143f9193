"""What breaks a client: an answer that loses something, a request that may less."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llorch_shared.contracts import files, openapi
from llorch_shared.contracts.compatibility import breaking
from llorch_shared.http_api import Plane

Document = dict[str, Any]


def document() -> Document:
    return {
        "info": {"version": "1.0.0"},
        "paths": {
            "/things": {
                "post": {
                    "parameters": [{"name": "limit", "in": "query", "schema": {"type": "integer", "maximum": 10}}],
                    "requestBody": {
                        "required": True,
                        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Ask"}}},
                    },
                    "responses": {
                        "200": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Thing"}}}},
                        "404": {"description": "none"},
                    },
                }
            }
        },
        "components": {
            "schemas": {
                "Ask": {
                    "type": "object",
                    "properties": {
                        "kind": {"enum": ["a", "b"]},
                        "note": {"type": "string", "nullable": True},
                        "size": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
                    },
                    "required": ["kind"],
                    "additionalProperties": False,
                },
                "Thing": {
                    "type": "object",
                    "properties": {
                        "id": {"type": "string"},
                        "parts": {"type": "array", "items": {"$ref": "#/components/schemas/Thing"}},
                    },
                    "required": ["id"],
                },
            }
        },
    }


Change = Callable[[Document], object]


def post(changed: Document) -> Document:
    return changed["paths"]["/things"]["post"]  # type: ignore[no-any-return]


def schema(changed: Document, name: str) -> Document:
    return changed["components"]["schemas"][name]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda d: d["paths"].clear(), "POST /things: it is gone"),
        (lambda d: post(d)["parameters"].clear(), "POST /things: parameter limit is gone"),
        (lambda d: post(d)["parameters"][0].update(required=True), "POST /things: parameter limit is required now"),
        (
            lambda d: post(d)["parameters"][0]["schema"].update(maximum=5),
            "POST /things: parameter limit: maximum is 5, was 10",
        ),
        (
            lambda d: post(d)["parameters"].append({"name": "who", "in": "query", "required": True, "schema": {}}),
            "POST /things: parameter who is new and required",
        ),
        (lambda d: post(d)["responses"].pop("200"), "POST /things: it does not answer 200 any more"),
        (lambda d: schema(d, "Ask")["properties"].pop("note"), "POST /things: body.note is gone"),
        (lambda d: schema(d, "Ask")["required"].append("note"), "POST /things: body.note is required now"),
        (
            lambda d: schema(d, "Ask")["properties"]["note"].pop("nullable"),
            "POST /things: body.note may not be null any more",
        ),
        (
            lambda d: schema(d, "Ask")["properties"]["kind"].update(enum=["a"]),
            "POST /things: body.kind does not take 'b' any more",
        ),
        (
            lambda d: schema(d, "Ask")["properties"]["size"]["anyOf"].pop(),
            "POST /things: body.size: one of its forms is gone",
        ),
        (lambda d: schema(d, "Thing")["properties"].pop("id"), "POST /things: 200.id is gone"),
        (lambda d: schema(d, "Thing")["required"].clear(), "POST /things: 200.id is not always there any more"),
        (
            lambda d: schema(d, "Thing")["properties"]["id"].update(type="integer"),
            "POST /things: 200.id is integer, was string",
        ),
    ],
)
def test_what_is_taken_from_a_client_is_named(change: Change, told: str) -> None:
    changed = document()
    change(changed)
    assert told in breaking(document(), changed)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["paths"].update({"/more": {"get": {"responses": {}}}}),
        lambda d: post(d)["parameters"][0]["schema"].pop("maximum"),
        lambda d: post(d)["responses"].pop("404"),
        lambda d: schema(d, "Ask")["properties"].update(more={"type": "string"}),
        lambda d: schema(d, "Ask")["properties"]["kind"]["enum"].append("c"),
        lambda d: schema(d, "Ask")["required"].clear(),
        lambda d: schema(d, "Thing")["properties"].update(more={"type": "string"}),
        lambda d: schema(d, "Thing")["required"].append("parts"),
    ],
)
def test_what_is_given_beside_breaks_nobody(change: Change) -> None:
    changed = document()
    change(changed)
    assert breaking(document(), changed) == []


@pytest.mark.parametrize("plane", Plane)
def test_a_document_keeps_what_it_promises(plane: Plane) -> None:
    assert breaking(openapi.document(plane), openapi.document(plane)) == []


def test_an_operation_that_is_gone_is_not_written_without_a_new_major_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write(tmp_path)
    whole = openapi.document(Plane.DATA)
    less = copy.deepcopy(whole)
    del less["paths"]["/v1/tasks"]["post"]
    monkeypatch.setattr(openapi, "document", lambda plane: less if plane is Plane.DATA else openapi_of_control)
    openapi_of_control = files.yaml.safe_load((tmp_path / "openapi/control.yaml").read_text())
    assert files.taken_away(tmp_path) == ["POST /v1/tasks: it is gone"]
    less["info"]["version"] = "2.0.0"
    assert files.taken_away(tmp_path) == []
