"""The bus operations as a NATS micro service: `nats micro ls`, `info` and `stats` show them, with the schema of each.

Every gateway process is one instance. The protocol is NATS's own (ADR-32): JSON on `$SRV.<verb>`, `$SRV.<verb>.<name>`
and `$SRV.<verb>.<name>.<id>`, answered by all instances.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from llorch_shared import subjects
from llorch_shared.bus.port import Bus, Message, Responder, Subscription
from llorch_shared.contracts import twins
from llorch_shared.http_api import API_VERSION, Operation

NAME: Final = "llama-orch"
QUEUE: Final = "gateways"
DESCRIPTION: Final = "LLM inference on your own GPUs: tasks, their streams and what serves them"
CONCURRENCY: Final = 4

_encode: Final = msgspec.json.Encoder().encode


@dataclass(slots=True)
class Endpoint:
    """One operation of this process and what it has done since the start."""

    operation: Operation
    requests: int = 0
    errors: int = 0
    last_error: str = ""
    busy_ns: int = 0

    def count(self, began_ns: int, error: str = "") -> None:
        """`began_ns`: of `time.perf_counter_ns`. `error`: status and code of a refusal; its message may repeat what was
        asked, and anybody may ask for this."""
        self.requests += 1
        self.busy_ns += time.perf_counter_ns() - began_ns
        if error:
            self.errors += 1
            self.last_error = error

    def place(self) -> dict[str, Any]:
        return {
            "name": self.operation.operation_id,
            "subject": subjects.api(self.operation.twin),
            "queue_group": QUEUE,
        }

    def info(self) -> dict[str, Any]:
        return {
            **self.place(),
            "metadata": {
                "summary": self.operation.summary,
                "http": f"{self.operation.method} {self.operation.path}",
                "request_schema": twins.request_schema_text(self.operation),
                "response_schema": twins.answer_schema_text(self.operation),
            },
        }

    def stats(self) -> dict[str, Any]:
        return {
            **self.place(),
            "num_requests": self.requests,
            "num_errors": self.errors,
            "last_error": self.last_error,
            "processing_time": self.busy_ns,
            "average_processing_time": self.busy_ns // self.requests if self.requests else 0,
        }


class Discovery:
    """Answers who asks which services there are."""

    def __init__(self, bus: Bus, *, instance: str, endpoints: Sequence[Endpoint]) -> None:
        self._bus: Final = bus
        self._endpoints: Final = endpoints
        self._started: Final = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        self._who: Final = {"name": NAME, "id": instance, "version": API_VERSION, "metadata": {}}
        self._described: list[dict[str, Any]] | None = None
        self._subscriptions: list[Subscription] = []

    async def start(self) -> None:
        verbs = {"PING": self._ping, "INFO": self._info, "STATS": self._stats}
        for verb, told in verbs.items():
            for subject in subjects.micro(verb, NAME, str(self._who["id"])):
                self._subscriptions.append(await self._bus.serve(subject, _responder(told), concurrency=CONCURRENCY))

    async def stop(self) -> None:
        for subscription in self._subscriptions:
            await subscription.close()
        self._subscriptions.clear()

    async def _ping(self) -> dict[str, Any]:
        return {"type": "io.nats.micro.v1.ping_response", **self._who}

    async def _info(self) -> dict[str, Any]:
        """Its schemas take a fifth of a second to make: once, and beside the streams of this process."""
        if self._described is None:
            self._described = await asyncio.to_thread(lambda: [endpoint.info() for endpoint in self._endpoints])
        return {
            "type": "io.nats.micro.v1.info_response",
            **self._who,
            "description": DESCRIPTION,
            "endpoints": self._described,
        }

    async def _stats(self) -> dict[str, Any]:
        return {
            "type": "io.nats.micro.v1.stats_response",
            **self._who,
            "started": self._started,
            "endpoints": [endpoint.stats() for endpoint in self._endpoints],
        }


def _responder(told: Callable[[], Awaitable[dict[str, Any]]]) -> Responder:
    async def respond(_message: Message) -> tuple[bytes, Mapping[str, str]]:
        return _encode(await told()), {}

    return respond
