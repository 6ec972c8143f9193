"""The error table for people and the metrics list for the lint (REQUIREMENTS 2.5 and section 4)."""

from typing import Any, Final

from llorch_shared.errors import ERRORS, PAYLOAD_DETAILS, POLICY_LABELS, RESET_DETAILS
from llorch_shared.http_api import STATUS_HEADERS
from llorch_shared.metrics import METRICS

CARDINALITY: Final[dict[str, int]] = {
    "engine": 8,
    "engine_version": 64,
    "pool_id": 256,
    "replica_id": 1024,
    "priority": 8,
    "reason": 16,
    "result": 4,
    "state": 8,
    "model_id": 1024,
    "outcome": 4,
    "pinned": 2,
    "fallback": 2,
    "policy": 4,
    "device": 64,
    "kind": 16,
    "mode": 2,
    "tenant": 1024,
}
"""Distinct values a label may take. `engine` is 8, not 4: the enum has seven (DESIGN C29); `policy`, `device`,
`kind`, `mode` and `tenant` have no number in the requirements."""

_ERRORS_HEAD: Final = """\
# Errors

<!-- Written by `make contracts` from the code; do not edit. -->

Every HTTP error has the body of `schemas/ErrorBody.json`; so does the data of an `error` event. Once a stream has begun
its status stays 200 and an error is its last event. `X-Correlation-Id` is on every answer.

| Code | HTTP | Retriable | When |
|---|---|---|---|
"""

_ERRORS_TAIL: Final = """
`INVALID_PARAMS` also answers 404 (unknown task, pool or path), 405 (method), 413 (body too large) and 415 (not JSON).

| HTTP | Headers |
|---|---|
"""

_LABELS_HEAD: Final = """
`policy_label` names the rule where a code has several:

| Label | What turned the task away |
|---|---|
"""

_DETAILS_HEAD: Final = """
`detail` of WORKER_RESET says why a stream that was cut short does not go on; without one too many attempts were lost:

| Detail | Why |
|---|---|
"""

_PAYLOADS_HEAD: Final = """
and of a task that ends with INVALID_PARAMS or INTERNAL what is wrong with its `payload_ref`:

| Detail | What |
|---|---|
"""


def errors_table() -> str:
    rows = [
        f"| `{code}` | {facts.status} | {'yes' if facts.retriable else 'no'} | {facts.meaning} |"
        for code, facts in ERRORS.items()
    ]
    headers = [f"| {status} | {', '.join(f'`{name}`' for name in names)} |" for status, names in STATUS_HEADERS.items()]
    labels = [f"| `{label}` | {meaning} |" for label, meaning in POLICY_LABELS.items()]
    details = [f"| `{detail}` | {meaning} |" for detail, meaning in RESET_DETAILS.items()]
    payloads = [f"| `{detail}` | {meaning} |" for detail, meaning in PAYLOAD_DETAILS.items()]
    tables = (
        (_ERRORS_HEAD, rows),
        (_ERRORS_TAIL, headers),
        (_LABELS_HEAD, labels),
        (_DETAILS_HEAD, details),
        (_PAYLOADS_HEAD, payloads),
    )
    return "".join(head + "\n".join(lines) + "\n" for head, lines in tables)


def metrics_lint() -> dict[str, Any]:
    """`required_metrics` and `label_cardinality_budget`, the keys of ci/metrics.lint.json."""
    return {
        "required_metrics": [
            {"name": name, "type": spec.kind, "labels": list(spec.labels)} for name, spec in METRICS.items()
        ],
        "label_cardinality_budget": CARDINALITY,
    }
