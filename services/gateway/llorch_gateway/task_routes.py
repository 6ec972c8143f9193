"""The two hot routes: a task is submitted, and its stream is read."""

import logging
from typing import Final
from urllib.parse import parse_qs

import msgspec

from llorch_gateway.admissions import Admissions
from llorch_gateway.asgi import STREAM_HEADERS, Counted, Receive, Scope, Send, budget_lines, empty, reply_error
from llorch_gateway.bodies import check_json, read_body
from llorch_gateway.call import Call
from llorch_gateway.http_errors import CORRELATION, JSON_TYPE, SAFE
from llorch_gateway.streams import Streams
from llorch_gateway.tasks import task_id
from llorch_shared.errors import invalid
from llorch_shared.wire.frames import Cursor, parse_cursor

log = logging.getLogger(__name__)

TASKS_PATH: Final = "/v1/tasks"
STREAM_SUFFIX: Final = "/stream"

_encode: Final = msgspec.json.Encoder().encode


class TaskRoutes:
    """Both raise OrchError or BusError, as long as their reply has not begun."""

    def __init__(self, *, admissions: Admissions, streams: Streams, body_bytes_max: int, body_read_s: float) -> None:
        self._admissions: Final = admissions
        self._streams: Final = streams
        self._body_bytes_max: Final = body_bytes_max
        self._body_read_s: Final = body_read_s

    async def submit(self, receive: Receive, send: Send, call: Call, headers: dict[bytes, bytes]) -> None:
        """`headers`: what the request says of its body."""
        body = await read_body(receive, headers, self._body_bytes_max, within_s=self._body_read_s)
        check_json(headers, "task")
        told = await self._admissions.submit(body, call)
        accepted = _encode(told)
        await send(
            {
                "type": "http.response.start",
                "status": 202,
                "headers": [
                    JSON_TYPE,
                    (b"content-length", str(len(accepted)).encode()),
                    (CORRELATION, call.correlation_id.encode()),
                    *budget_lines(told),
                    *SAFE,
                ],
            }
        )
        await send({"type": "http.response.body", "body": accepted})

    async def stream(self, scope: Scope, receive: Receive, send: Send, call: Call, answered: Counted) -> None:
        task, slash, _ = scope["path"][len(TASKS_PATH) + 1 :].partition("/")
        if not slash or scope["path"] != f"{TASKS_PATH}/{task}{STREAM_SUFFIX}":
            raise invalid("there is no such path", status=404)
        if scope["method"] != "GET":
            await _not_allowed(send, call, "GET")
            return
        cursor = _cursor(dict(scope["headers"]).get(b"last-event-id"), scope["query_string"])
        opened = await answered(self._streams.open(task_id(task), cursor, call))
        correlation = (CORRELATION, call.correlation_id.encode())
        if opened is None:
            await empty(send, [correlation])
            return

        async def write(data: bytes) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": True})

        headers_sent = [*STREAM_HEADERS, correlation, *budget_lines(opened.left)]
        started = False

        async def start() -> None:
            nonlocal started
            started = True
            await send({"type": "http.response.start", "status": 200, "headers": headers_sent})

        async def gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                continue

        try:
            await self._streams.serve(opened, call, start=start, write=write, gone=gone, news=True)
        except Exception:
            if not started:
                raise
            log.exception("a stream broke off", extra={"task_id": opened.task, "correlation_id": call.correlation_id})
        await send({"type": "http.response.body", "body": b""})


async def _not_allowed(send: Send, call: Call, allow: str) -> None:
    error = invalid(f"this path takes {allow}", status=405)
    await reply_error(send, error, call.correlation_id, allow=allow)


def _cursor(last_event_id: bytes | None, query: bytes) -> Cursor | None:
    """Last-Event-ID wins over `after`; neither means from the beginning. Raises OrchError, whichever is wrong."""
    asked = parse_qs(query.decode("latin-1"), keep_blank_values=True) if query else {}
    given = asked.pop("after", [])
    if asked:
        raise invalid(f"{min(asked)[:80]!r} is no parameter of a stream; it has after")
    cursors = [_parsed_cursor("after", text) for text in given]
    if last_event_id:
        return _parsed_cursor("Last-Event-ID", last_event_id.decode("latin-1"))
    return cursors[0] if cursors else None


def _parsed_cursor(name: str, text: str) -> Cursor:
    try:
        return parse_cursor(text)
    except ValueError as error:
        raise invalid(f"{name}: {error}") from error
