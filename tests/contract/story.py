"""The examples of the contracts, as a real gateway answers them: a story that is told to it, request by request.

`recorded` tells the story (`story_steps`) to a gateway on an in-memory bus and returns what was asked and answered.
What differs each time (times, the gateway's own name) is masked. The examples in the contracts are this record;
`test_story.py` tells the story again and compares.

    PYTHONPATH=tests python -m contract.story      writes the record; then: make contracts
"""

import json
import re
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

import anyio

from llorch_shared.contracts import examples
from llorch_shared.http_api import JSON, OPERATIONS, Operation
from support.asgi import AsgiClient, Reply

CORRELATION: Final = "9d2c4f0e-5b1a-4c7d-8e9f-102030405060"
A_TIME_MS: Final = 1_760_000_000_000
TOLD_HEADERS: Final = ("ETag", "Retry-After", "X-Backoff-Ms", "Allow", "WWW-Authenticate")
_TOLD_PREFIX: Final = "x-budget-"
_MASKED_KEYS: Final[dict[str, Any]] = {
    "ttl_ms_remaining": 600_000,
    "retry_after_ms": 1_000,
    "Retry-After": "1",
    "X-Backoff-Ms": "1000",
}
_MASKED_TEXTS: Final = (
    (re.compile(r"gw-[0-9a-f]{8}"), "gw-5c1d2e3f"),
    (re.compile(r'"(hash|previous)":"[0-9a-f]{32}"'), r'"\1":"72ae3e920d3d3c5f299d8fc624cd5edc"'),
    (re.compile(r"(gw-5c1d2e3f/)[0-9a-f]{16}"), r"\1ff7961d36531dd79"),
    (re.compile(r'"\\"[0-9a-f]{32}\\""'), r'"\\"5fc648fbf4e399d15d9468a93843e31c\\""'),
    (re.compile(r'"id":"[0-9a-f]{16}"'), '"id":"b20db7de420e90a5"'),
    (re.compile(r'"cursor":"[0-9a-f]{8}\.'), '"cursor":"9f3a1c07.'),
)
_TEXT_KEPT: Final = 4_000
"""Characters of an answer; longer ones (metrics, the contracts themselves) are not examples of anything."""

BY_ID: Final = {operation.operation_id: operation for operation in OPERATIONS}


@dataclass
class Teller:
    """Asks, and keeps what was asked and answered."""

    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    async def ask(
        self,
        door: AsgiClient,
        operation_id: str,
        name: str,
        status: int,
        *,
        path: dict[str, str] | None = None,
        query: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        body: Any = None,
    ) -> Reply:
        """One request to its end. Raises AssertionError when it is answered with another status."""
        reply = self.begin(door, operation_id, path=path, query=query, headers=headers, body=body)
        return await self.tell(reply, operation_id, name, status, path=path, query=query, headers=headers, body=body)

    def begin(
        self,
        door: AsgiClient,
        operation_id: str,
        *,
        path: dict[str, str] | None = None,
        query: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        body: Any = None,
    ) -> Reply:
        operation = BY_ID[operation_id]
        where = _url(operation, path or {}, query or {})
        sent = {"X-Correlation-Id": CORRELATION, **(headers or {})}
        if operation.request is not None:
            sent["Content-Type"] = JSON
        return door.open(operation.method, where, json.dumps(body).encode() if body is not None else b"", sent)

    async def tell(self, reply: Reply, operation_id: str, name: str, status: int, **asked: Any) -> Reply:
        await reply.end()
        assert reply.status == status, f"{operation_id}, {name}: {reply.status} {reply.body!r}"
        shown = {key: value for key, value in asked.items() if value is not None}
        if "headers" in shown and "Authorization" in shown["headers"]:
            shown["headers"] = {**shown["headers"], "Authorization": "Bearer …"}
        example = {"name": name, "request": shown, "status": status} if shown else {"name": name, "status": status}
        told = {key: reply.headers[key.lower()] for key in TOLD_HEADERS if key.lower() in reply.headers}
        told |= {key: text for key, text in reply.headers.items() if key.startswith(_TOLD_PREFIX)}
        if told:
            example["headers"] = _masked(told)
        if reply.body and len(reply.body) <= _TEXT_KEPT:
            example["response"] = _masked(_read(reply))
        self.examples.setdefault(operation_id, []).append(example)
        return reply


def _url(operation: Operation, path: dict[str, str], query: dict[str, str]) -> str:
    where = operation.path
    for name, value in path.items():
        where = where.replace(f"{{{name}}}", quote(value, safe=":"))
    return f"{where}?{urlencode(query)}" if query else where


def _read(reply: Reply) -> Any:
    if reply.headers.get("content-type", "").startswith(JSON):
        return json.loads(reply.body)
    return reply.body.decode()


def _masked(told: Any) -> Any:
    text = json.dumps(told, ensure_ascii=False, separators=(",", ":"))
    for pattern, replacement in _MASKED_TEXTS:
        text = pattern.sub(replacement, text)
    return _steady(json.loads(text))


def _steady(value: Any, key: str = "") -> Any:
    """Times become one time, by what they look like."""
    if isinstance(value, dict):
        return {name: _steady(each, name) for name, each in value.items()}
    if isinstance(value, list):
        return [_steady(each) for each in value]
    if key in _MASKED_KEYS and isinstance(value, int | str):
        return _MASKED_KEYS[key]
    if isinstance(value, int) and not isinstance(value, bool):
        if value > 10**12:
            return A_TIME_MS
        if value > 10**9 and key in ("created", "created_at"):
            return A_TIME_MS // 1_000
    if isinstance(value, str):
        value = re.sub(r"\b1[6-9]\d{11}\b", str(A_TIME_MS), value)
        return re.sub(r'("created(?:_at)?":)1[6-9]\d{8}\b', rf"\g<1>{A_TIME_MS // 1_000}", value)
    return value


async def recorded(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Every example by operation_id, in the order of the operations. `folder` is for the files of the story."""
    from contract.story_steps import tell

    teller = Teller()
    await tell(teller, folder)
    return {name: teller.examples[name] for name in BY_ID if name in teller.examples}


def text_of(record: dict[str, list[dict[str, Any]]]) -> str:
    return json.dumps(record, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        record = anyio.run(recorded, Path(made))
    examples.RECORD.write_text(text_of(record), encoding="utf-8")
    sys.stdout.write(f"{examples.RECORD.name}: {sum(map(len, record.values()))} examples; now: make contracts\n")
