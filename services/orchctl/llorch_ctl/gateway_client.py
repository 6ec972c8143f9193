"""The HTTP API as a command-line client uses it: submit, read a stream to its end, cancel, look up.

A broken stream is taken up again with Last-Event-ID until it ends or the gateway stays away too long. Every error
becomes a `Problem` with its exit code: 429 and 503 are refusals for now, 400 is wrong usage, silence is unreachable.
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Mapping
from typing import Final, Self, TypeVar
from urllib.parse import urlencode

import aiohttp
import msgspec

from llorch_ctl import ports
from llorch_ctl.core.event_stream import BadStream, Reading
from llorch_ctl.exits import Exit, Problem
from llorch_shared.errors import ErrorBody
from llorch_shared.http_api import LAST_EVENT_ID_HEADER
from llorch_shared.settings import Secret, Settings
from llorch_shared.wire.frames import Event, parse_cursor
from llorch_shared.wire.registry import Capabilities, PoolHealth
from llorch_shared.wire.run import LIST_MAX, TaskList, TaskView
from llorch_shared.wire.task import TaskAccepted, TaskRequest

ANSWER_WITHIN_S: Final = 30.0
RECONNECTS_MAX: Final = 30
"""Connections in a row that bring nothing new before a stream is given up."""
RECONNECT_DELAY_S: Final = 0.5
RECONNECT_DELAY_MAX_S: Final = 5.0
_EXITS: Final = {400: Exit.USAGE, 413: Exit.USAGE, 422: Exit.USAGE, 429: Exit.REFUSED, 503: Exit.REFUSED}
_OTHER_SERVER: Final = "point ORCHD_ADDR or --config at a running gateway"

T = TypeVar("T")


def bearer(token: Secret) -> dict[str, str]:
    """The header that carries `token`; none without one."""
    return {"Authorization": f"Bearer {token.reveal()}"} if token else {}


def gateway_url(settings: Settings) -> str:
    """Where this machine reaches its own gateway; a wildcard address is reached on loopback."""
    host, port = ports.split(settings.gateway.addr)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  (read, not bound)
    scheme = "https" if settings.gateway.tls.cert_file else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def trust(settings: Settings) -> ssl.SSLContext | bool:
    """For this machine's own gateway: the very certificate that its settings name is believed, whatever name stands in
    it, since it is reached by its address. It is shown, too, where callers must show one. Raises Problem."""
    wanted = settings.gateway.tls
    if not wanted.cert_file:
        return True
    try:
        context = ssl.create_default_context(cafile=wanted.cert_file)
        context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
        context.check_hostname = False
        if wanted.client_ca_file:
            context.load_cert_chain(wanted.cert_file, wanted.key_file)
    except OSError as error:
        raise Problem(f"the gateway's certificate {wanted.cert_file} cannot be read: {error}") from error
    return context


class ApiProblem(Problem):
    """An error envelope of the gateway."""

    def __init__(self, status: int, body: ErrorBody) -> None:
        fix = body.hint or ""
        if body.retry_after_ms:
            fix = f"{fix + '; ' if fix else ''}try again in {body.retry_after_ms / 1000:.1f} s"
        super().__init__(body.message, fix=fix, exit_code=_EXITS.get(status, Exit.FAILED), code=body.code)
        self.status = status
        self.body = body


class GatewayClient:
    """Use as an async context manager."""

    def __init__(self, url: str, token: Secret, *, tls: ssl.SSLContext | bool = True) -> None:
        self.url: Final = url.rstrip("/")
        limits = aiohttp.ClientTimeout(total=None, sock_connect=5)
        self._http: Final = aiohttp.ClientSession(
            headers=bearer(token), timeout=limits, connector=aiohttp.TCPConnector(ssl=tls)
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    async def submit(self, request: TaskRequest) -> TaskAccepted:
        answer = await self._call("POST", "/v1/tasks", TaskAccepted, body=msgspec.json.encode(request))
        assert answer is not None
        return answer

    async def show(self, task_id: str) -> TaskView:
        answer = await self._call("GET", f"/v1/tasks/{task_id}", TaskView)
        assert answer is not None
        return answer

    async def tasks(self, filters: Mapping[str, str], limit: int) -> AsyncIterator[TaskView]:
        """At most `limit` of them, page by page. `filters` as GET /v1/tasks takes them."""
        cursor: str | None = ""
        while cursor is not None and limit > 0:
            asked = {**filters, "limit": str(min(limit, LIST_MAX)), **({"cursor": cursor} if cursor else {})}
            page = await self._call("GET", f"/v1/tasks?{urlencode(asked)}", TaskList)
            assert page is not None
            for view in page.tasks:
                yield view
            limit -= len(page.tasks)
            cursor = page.cursor

    async def cancel(self, task_id: str) -> TaskView | None:
        """None is the receipt (204): the task has ended and its slot is free. A view means: the wish is stored."""
        return await self._call("POST", f"/v1/tasks/{task_id}/cancel", TaskView)

    async def capabilities(self) -> Capabilities:
        answer = await self._call("GET", "/v1/capabilities", Capabilities)
        assert answer is not None
        return answer

    async def health(self, pool_id: str) -> PoolHealth:
        answer = await self._call("GET", f"/v1/pools/{pool_id}/health", PoolHealth)
        assert answer is not None
        return answer

    async def stream(self, task_id: str, after: str = "") -> AsyncIterator[Event]:
        """Every event of the task from the cursor `after` on, each token once, over as many connections as it takes.
        Raises Problem, and ValueError for an `after` that is no cursor."""
        reading = Reading()
        if after:
            reading.last_id, reading.tokens = after, parse_cursor(after).token + 1
        fruitless = 0
        while not reading.ended:
            seen = (reading.tokens, reading.last_id)
            try:
                async for event in self._one_connection(task_id, reading):
                    yield event
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                if fruitless >= RECONNECTS_MAX or (fruitless == 0 and not reading.last_id and _refused(error)):
                    raise self._unreachable(error) from error
            reading.connection_lost()
            fruitless = 0 if (reading.tokens, reading.last_id) != seen else fruitless + 1
            if fruitless > RECONNECTS_MAX:
                raise Problem(
                    f"the stream of {task_id} breaks again and again",
                    fix=f"the task goes on; look at it with: orchctl task show {task_id}",
                    exit_code=Exit.UNREACHABLE,
                )
            if not reading.ended:
                delay = reading.retry_ms / 1000 if reading.retry_ms is not None else RECONNECT_DELAY_S
                await asyncio.sleep(min(RECONNECT_DELAY_MAX_S, delay * 1.5 ** min(fruitless, 10)))

    async def _one_connection(self, task_id: str, reading: Reading) -> AsyncIterator[Event]:
        headers = {"Accept": "text/event-stream"}
        if reading.last_id:
            headers[LAST_EVENT_ID_HEADER] = reading.last_id
        async with self._http.get(f"{self.url}/v1/tasks/{task_id}/stream", headers=headers) as answer:
            if answer.status == 204:
                reading.ended = True
                return
            if answer.status != 200:
                raise _problem(answer.status, await answer.read())
            try:
                async for data in answer.content.iter_any():
                    for event in reading.feed(data):
                        yield event
            except BadStream as error:
                raise Problem(f"{self.url} does not send an event stream: {error}", fix=_OTHER_SERVER) from error

    async def ask(
        self, method: str, path: str, answer_type: type[T], *, body: bytes | None = None, over: str = ""
    ) -> T:
        """Any operation that answers with a body. `over`: the version (`ETag`) that is to be replaced. Raises
        Problem."""
        answer = await self._call(method, path, answer_type, body=body, over=over)
        assert answer is not None
        return answer

    async def version(self, path: str) -> str:
        """The `ETag` of what is there; empty where nothing is. Raises Problem."""
        status, data, etag = await self._exchange("GET", path)
        if status not in (200, 404):
            raise _problem(status, data)
        return etag if status == 200 else ""

    async def command(self, method: str, path: str, *, body: bytes | None = None) -> None:
        """Any operation whose answer says nothing more than that it was taken. Raises Problem."""
        await self._call(method, path, msgspec.Raw, body=body)

    async def _exchange(
        self, method: str, path: str, *, body: bytes | None = None, over: str = ""
    ) -> tuple[int, bytes, str]:
        """Status, body and `ETag`."""
        headers = {"Content-Type": "application/json"} if body is not None else {}
        if over:
            headers["If-Match"] = over
        limit = aiohttp.ClientTimeout(total=ANSWER_WITHIN_S)
        try:
            async with self._http.request(method, self.url + path, data=body, headers=headers, timeout=limit) as answer:
                return answer.status, await answer.read(), answer.headers.get("ETag", "")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unreachable(error) from error

    async def _call(
        self, method: str, path: str, answer_type: type[T], *, body: bytes | None = None, over: str = ""
    ) -> T | None:
        status, data, _ = await self._exchange(method, path, body=body, over=over)
        if status == 204:
            return None
        if status >= 300:
            raise _problem(status, data)
        try:
            return msgspec.json.decode(data, type=answer_type)
        except msgspec.DecodeError as error:
            raise Problem(
                f"{self.url} answers something else than a llama-orch gateway: {error}", fix=_OTHER_SERVER
            ) from error

    def _unreachable(self, error: BaseException) -> Problem:
        return Problem(
            f"nobody answers at {self.url} (the gateway): {str(error) or type(error).__name__}",
            fix="start the system (orchctl up), or point ORCHD_ADDR or --config at a running one",
            exit_code=Exit.UNREACHABLE,
        )


def _refused(error: BaseException) -> bool:
    return isinstance(error, aiohttp.ClientConnectorError)


def _problem(status: int, data: bytes) -> Problem:
    with contextlib.suppress(msgspec.DecodeError):
        return ApiProblem(status, msgspec.json.decode(data, type=ErrorBody))
    return Problem(f"the gateway answers HTTP {status}", exit_code=_EXITS.get(status, Exit.FAILED))
