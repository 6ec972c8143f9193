"""The contract files equal the code, hold together, and are valid in their own languages."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import yaml
from openapi_spec_validator import OpenAPIV30SpecValidator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from llorch_shared import errors, http_api, metrics, subjects
from llorch_shared.contracts import asyncapi, examples, files, lists, openapi, schemas
from llorch_shared.http_api import OPERATIONS, Operation, Plane
from llorch_shared.settings import Settings
from llorch_shared.subject_table import SUBJECTS
from llorch_shared.wire import frames
from llorch_shared.wire.task import Engine, TaskRequest

REPOSITORY = Path(__file__).parents[2]
CONTRACTS = REPOSITORY / "contracts"
DOCUMENTS = {plane: openapi.document(plane) for plane in Plane}
BUS = asyncapi.document()
SCHEMAS = schemas.files()
REGISTRY: Registry[Any] = Registry().with_resources(
    (f"{name}.json", Resource.from_contents(schema, default_specification=DRAFT202012))
    for name, schema in SCHEMAS.items()
)


def test_the_files_are_what_the_code_says() -> None:
    assert files.difference(CONTRACTS) == "", "run `make contracts` and commit what it writes"


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    files.write(tmp_path)
    first = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.rglob("*") if path.is_file()}
    files.write(tmp_path)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in first} == first


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-m", "llorch_shared.contracts", "--out", str(tmp_path / seed)],
            env={"PYTHONHASHSEED": seed},
            check=True,
            timeout=60,
        )
    for path in (tmp_path / "1").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "2" / path.relative_to(tmp_path / "1")).read_bytes()


def test_check_shows_the_difference_and_fails(tmp_path: Path) -> None:
    files.write(tmp_path)
    (tmp_path / "errors.md").write_text("# Errors\n")
    (tmp_path / "schemas" / "Gone.json").write_text("{}\n")
    (tmp_path / "schemas" / "Token.json").unlink()
    run = subprocess.run(
        [sys.executable, "-m", "llorch_shared.contracts", "--check", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 1
    assert "+| `INVALID_PARAMS` | 400" in run.stdout
    assert "Gone.json" in run.stdout
    assert "Token.json" in run.stdout
    files.write(tmp_path)
    assert files.difference(tmp_path) == ""


def test_every_wire_type_has_a_schema_file() -> None:
    on_disk = {path.stem for path in (CONTRACTS / "schemas").glob("*.json")}
    assert set(schemas.wire_types()) <= on_disk


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_a_schema_is_valid_and_its_references_resolve(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[name])
    for reference in _references(SCHEMAS[name]):
        assert reference in REGISTRY, f"{name} refers to {reference}"


@pytest.mark.parametrize(
    "value",
    [examples.REQUEST, examples.ACCEPTED, examples.VIEW, examples.HEALTH, examples.CAPABILITIES, examples.FULL],
    ids=lambda value: type(value).__name__,
)
def test_what_the_code_writes_fits_its_schema(value: msgspec.Struct) -> None:
    schema = {"$ref": f"{type(value).__name__}.json"}
    jsonschema.Draft202012Validator(schema, registry=REGISTRY).validate(_as_json(value))
    plane = Plane.CONTROL if type(value).__name__ in {"PoolHealth", "Capabilities"} else Plane.DATA
    _check_openapi(plane, type(value).__name__, _as_json(value))


@pytest.mark.parametrize(
    ("field", "value"),
    [("ctx", -1), ("engine", "abacus"), ("task_id", "1"), ("surprise", 1), ("max_tokens", 50_001), ("prompt", 7)],
)
def test_what_the_code_refuses_breaks_the_schema_too(field: str, value: object) -> None:
    request = {**_as_json(examples.REQUEST), field: value}
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(request, TaskRequest)
    with pytest.raises(jsonschema.ValidationError):
        _check_openapi(Plane.DATA, "TaskRequest", request)


def test_a_field_is_described_by_the_sentence_under_it_in_the_source() -> None:
    slots = SCHEMAS["PoolSpec"]["properties"]["slots"]
    assert slots == {
        "type": "integer",
        "minimum": 1,
        "maximum": 4096,
        "default": 1,
        "description": "Tasks one replica decodes at once.",
    }
    assert SCHEMAS["Engine"]["enum"] == [engine.value for engine in Engine]


@pytest.mark.parametrize("plane", list(Plane))
def test_the_openapi_document_is_valid(plane: Plane) -> None:
    OpenAPIV30SpecValidator(yaml.safe_load((CONTRACTS / "openapi" / f"{plane}.yaml").read_text())).validate()
    assert DOCUMENTS[plane]["openapi"] == "3.0.3"
    assert DOCUMENTS[plane]["info"]["version"] == "1.0.0"


@pytest.mark.parametrize("plane", list(Plane))
def test_the_openapi_document_speaks_the_dialect_of_3_0(plane: Plane) -> None:
    for node in _objects(DOCUMENTS[plane]):
        assert not {"const", "prefixItems", "$defs", "examples"} & node.keys()
        assert node.get("type") != "null"
        assert "$ref" not in node or len(node) == 1, f"something stands beside {node['$ref']}"
        if isinstance(node.get("pattern"), str):
            assert "(?!" not in node["pattern"]
    json.dumps(DOCUMENTS[plane])


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.operation_id)
def test_every_operation_is_in_its_document(operation: Operation) -> None:
    made = DOCUMENTS[operation.plane]["paths"][operation.path][operation.method.lower()]
    assert made["operationId"] == operation.operation_id
    assert made["x-req-id"]
    statuses = {reply.status for reply in operation.replies} | operation.error_codes().keys()
    assert set(made["responses"]) == {str(status) for status in statuses}
    for status, response in made["responses"].items():
        of_status = http_api.STATUS_HEADERS.get(int(status), ()) if int(status) in operation.error_codes() else ()
        of_reply = {name for reply in operation.replies if reply.status == int(status) for name in reply.headers}
        assert {"X-Correlation-Id", *of_status, *of_reply} == response["headers"].keys()
    assert ("security" in made) is not operation.authenticated


def test_an_accepted_task_leads_to_everything_that_can_be_done_with_it() -> None:
    links = DOCUMENTS[Plane.DATA]["paths"]["/v1/tasks"]["post"]["responses"]["202"]["links"]
    named = {operation.operation_id for operation in OPERATIONS}
    assert {link["operationId"] for link in links.values()} <= named
    assert {"getTask", "streamTask", "cancelTask"} <= {link["operationId"] for link in links.values()}


def test_an_admission_that_is_refused_says_when_to_come_back() -> None:
    refused = DOCUMENTS[Plane.DATA]["paths"]["/v1/tasks"]["post"]["responses"]["429"]
    assert refused["headers"].keys() == {"X-Correlation-Id", "Retry-After", "X-Backoff-Ms"}
    narrowed = refused["content"]["application/json"]["schema"]["allOf"][1]
    assert {"retry_after_ms", "policy_label"} <= set(narrowed["required"])


def test_every_admission_code_of_the_table_is_in_some_answer() -> None:
    written = json.dumps(DOCUMENTS)
    for code in errors.ErrorCode:
        assert code in written


def test_an_accepted_task_has_all_fields_of_the_requirements() -> None:
    accepted = DOCUMENTS[Plane.DATA]["components"]["schemas"]["TaskAccepted"]
    assert {"task_id", "queue_position", "predicted_start_ms", "backoff_ms"} <= set(accepted["required"])


def test_the_stream_examples_are_real_frames() -> None:
    listed = DOCUMENTS[Plane.DATA]["paths"]["/v1/tasks/{id}/stream"]["get"]["x-examples"]
    streams = [example for example in listed if example["status"] == 200]
    assert len(streams) == len(examples.STREAMS)
    for example in streams:
        events = frames.split_events(example["response"].encode())
        assert events[-1].event in ("end", "error")
        assert {event.event for event in events} <= {"started", "token", "metrics", "end", "error"}
        assert all(json.loads(event.data) for event in events)


def test_every_subject_is_a_channel_with_its_services_and_promise() -> None:
    channels = BUS["channels"]
    assert len(SUBJECTS) == len(asyncapi.channel_names())
    for name, subject in asyncapi.channel_names().items():
        channel = channels[name]
        assert channel["address"] == subject.pattern
        assert channel["x-delivery"]["promise"] == subject.delivery
        assert set(channel.get("parameters", {})) == set(re.findall(r"{(\w+)}", subject.pattern))
        operations = [
            (operation["action"], operation["x-service"])
            for operation in BUS["operations"].values()
            if operation["channel"] == {"$ref": f"#/channels/{name}"}
        ]
        expected = [("send", service) for service in subject.publishers]
        assert operations == expected + [("receive", service) for service in subject.consumers]
        assert (f"{name}Reply" in channels) is bool(subject.reply)


def test_every_subject_constant_has_a_row() -> None:
    patterns = {subject.pattern for subject in SUBJECTS}
    for name, value in vars(subjects).items():
        if name.isupper() and isinstance(value, str) and value.startswith(("llorch.", "$KV.")):
            assert name.startswith("ALL_") or value in patterns, name


def test_every_payload_on_the_bus_is_a_wire_type() -> None:
    known = set(schemas.wire_types()) | {asyncapi.FRAMES, "text/plain", "application/octet-stream"}
    for subject in SUBJECTS:
        names = asyncapi.payload_names(subject.payload)
        names += asyncapi.payload_names(subject.reply) if subject.reply else []
        assert set(names) <= known, subject.pattern


def test_every_reference_of_the_bus_document_resolves() -> None:
    for reference in _references(BUS):
        if reference.startswith("#/"):
            node: Any = BUS
            for step in reference.removeprefix("#/").split("/"):
                node = node[step]
        else:
            assert (CONTRACTS / reference).is_file(), reference


def test_a_message_of_an_operation_is_one_of_its_channel() -> None:
    for operation in BUS["operations"].values():
        channel = operation["channel"]["$ref"]
        assert all(message["$ref"].startswith(f"{channel}/messages/") for message in operation["messages"])


def test_the_metrics_lint_is_the_metrics_of_the_code() -> None:
    lint = json.loads((CONTRACTS / "metrics.lint.json").read_text())
    listed = {row["name"]: (row["type"], tuple(row["labels"])) for row in lint["required_metrics"]}
    assert listed == {name: (spec.kind, spec.labels) for name, spec in metrics.METRICS.items()}
    assert len(listed) == len(lint["required_metrics"])


def test_every_label_has_a_cardinality_budget() -> None:
    budget = lists.metrics_lint()["label_cardinality_budget"]
    assert {label for spec in metrics.METRICS.values() for label in spec.labels} <= budget.keys()
    assert all(limit > 0 for limit in budget.values())
    assert budget["engine"] >= len(Engine)


def test_the_error_table_has_every_code_with_its_status() -> None:
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| (\d{3}) ", (CONTRACTS / "errors.md").read_text(), re.MULTILINE))
    assert rows == {code.value: str(facts.status) for code, facts in errors.ERRORS.items()}


def test_the_config_schema_takes_what_the_settings_take() -> None:
    schema = json.loads((CONTRACTS / "config-schema" / "Config.json").read_text())
    validator = jsonschema.Draft7Validator(schema)
    validator.check_schema(schema)
    validator.validate({})
    validator.validate(_as_json(Settings()))
    validator.validate({"pools": [{"id": "a", "engine": "mock", "model": "m", "devices": [0, 1]}]})
    for bad in ({"gatway": {}}, {"gateway": {"adr": ""}}, {"pools": [{"id": "A", "engine": "mock", "model": "m"}]}):
        with pytest.raises(jsonschema.ValidationError):
            validator.validate(bad)


def _as_json(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))


def _objects(node: Any) -> list[dict[str, Any]]:
    if isinstance(node, dict):
        return [node, *(found for value in node.values() for found in _objects(value))]
    return [found for item in node for found in _objects(item)] if isinstance(node, list) else []


def _references(node: Any) -> list[str]:
    return [found["$ref"] for found in _objects(node) if isinstance(found.get("$ref"), str)]


def _check_openapi(plane: Plane, name: str, value: Any) -> None:
    """Validate by the document's component, reading `nullable` as JSON Schema would say it."""
    document = json.loads(json.dumps(DOCUMENTS[plane]))
    for node in _objects(document["components"]["schemas"]):
        if node.pop("nullable", False):
            inner = dict(node)
            node.clear()
            node["anyOf"] = [inner, {"type": "null"}]
    jsonschema.Draft4Validator({"$ref": f"#/components/schemas/{name}", **document}).validate(value)
