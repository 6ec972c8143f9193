"""`orchctl task`: submit, read, cancel and look up tasks over HTTP."""

import asyncio
import signal
import sys
import uuid
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer

from llorch_ctl.core.task_request import NoChoice, Template, Wish, build, choose
from llorch_ctl.exits import Exit, Problem
from llorch_ctl.gateway_client import GatewayClient, gateway_url, trust
from llorch_ctl.terminal import ERR, OUT, ConfigOption, JsonOption, run, settings_from, write_json
from llorch_shared.identifiers import is_uuid
from llorch_shared.settings import Settings
from llorch_shared.settings_loading import secret
from llorch_shared.wire.frames import Event, parse_cursor
from llorch_shared.wire.task import Determinism, Engine, Failover, Priority, TaskRequest, TaskState

_CANCEL_WITHIN_S: Final = 10.0
_WITHOUT_SUCCESS: Final = frozenset({TaskState.FAILED, TaskState.EXPIRED, TaskState.DROPPED})
"""Ends that nobody asked for."""

app = typer.Typer(
    help="Submit, read, cancel and look up tasks. The token, if one is needed, comes from LLORCH_API_TOKEN.",
    no_args_is_help=True,
)


def _task_id(text: str) -> str:
    if not is_uuid(text):
        raise typer.BadParameter(f"{text!r} is not a task id (a UUID)")
    return text.lower()


def _cursor(text: str) -> str:
    try:
        parse_cursor(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not INDEX or ATTEMPT-INDEX, for example 12 or 1-12") from None
    return text


TaskArgument = Annotated[str, typer.Argument(metavar="TASK", help="Id of a task.", parser=_task_id)]


@app.command("submit")
def submit(
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from standard input.")],
    *,
    stream: Annotated[
        bool, typer.Option("--stream", "-s", help="Print the tokens as they come; Ctrl-C cancels.")
    ] = False,
    template: Annotated[Template, typer.Option(help="Wrap the prompt for a chat model.")] = Template.NONE,
    prompt_file: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Appended to the prompt.")
    ] = None,
    pool: Annotated[str | None, typer.Option(help="Run in this pool.")] = None,
    model: Annotated[str | None, typer.Option(help="model_ref, where the system serves several.")] = None,
    engine: Annotated[Engine | None, typer.Option(help="Engine, where the system serves several.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", min=1, help="Tokens to make at most.")] = 128,
    ctx: Annotated[int | None, typer.Option(min=1, help="Context length. Default: the pool's.")] = None,
    priority: Annotated[Priority, typer.Option(help="Class of the queue.")] = Priority.INTERACTIVE,
    determinism: Annotated[
        Determinism, typer.Option(help="strict: the same seed gives the same text.")
    ] = Determinism.STRICT,
    failover: Annotated[
        Failover,
        typer.Option(help="When the engine is lost within a stream that is not strict: go on, begin anew, fail."),
    ] = Failover.RESUME,
    seed: Annotated[int | None, typer.Option(min=0, help="Default: made from the task id.")] = None,
    deadline_ms: Annotated[int, typer.Option(min=1, help="Budget from admission to the last token.")] = 600_000,
    task_id: Annotated[
        str | None, typer.Option(help="UUID; the same id again is the same task.", parser=_task_id)
    ] = None,
    session_id: Annotated[str | None, typer.Option(help="UUID of a session.", parser=_task_id)] = None,
    override: Annotated[bool, typer.Option("--override", help="Although its model is Deprecated.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a task into its queue. Prints the admission; with --stream the text."""
    settings = settings_from(config)
    text = sys.stdin.read() if prompt == "-" else prompt
    if prompt_file is not None:
        try:
            text += prompt_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise typer.BadParameter(f"{prompt_file} cannot be read as UTF-8 text: {error}") from error
    wish = Wish(
        prompt=text,
        template=template,
        model=model,
        engine=engine,
        pool=pool,
        max_tokens=max_tokens,
        ctx=ctx,
        priority=priority,
        determinism=determinism,
        failover=failover,
        seed=seed,
        deadline_ms=deadline_ms,
        override=override,
        task_id=task_id or str(uuid.uuid4()),
        session_id=session_id or str(uuid.uuid4()),
    )
    raise typer.Exit(run(lambda: _submit(settings, wish, stream=stream, as_json=as_json)))


@app.command("stream")
def stream(
    task: TaskArgument,
    after: Annotated[
        str | None, typer.Option(help="Go on after this token: INDEX or ATTEMPT-INDEX.", parser=_cursor)
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read a task's tokens, from the beginning or from where you were. Ctrl-C stops reading, not the task."""
    settings = settings_from(config)

    async def main() -> int:
        async with _client(settings) as client:
            return await _print_stream(client.stream(task, after or ""), as_json=as_json)

    raise typer.Exit(run(main))


@app.command("cancel")
def cancel(task: TaskArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """End a task and wait for the receipt that its slot is free."""
    settings = settings_from(config)

    async def main() -> int:
        async with _client(settings) as client:
            await _cancel(client, task, as_json=as_json)
        return Exit.OK

    raise typer.Exit(run(main))


@app.command("list")
def list_(
    state: Annotated[TaskState | None, typer.Option(help="Only in this state.")] = None,
    session: Annotated[str, typer.Option(help="Only of this session.")] = "",
    tenant: Annotated[str, typer.Option(help="Only of this tenant.")] = "",
    pool: Annotated[str, typer.Option(help="Only of this pool.")] = "",
    *,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many at most.")] = 50,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tasks of the last 72 hours: what waits, then the others, last changed first."""
    settings = settings_from(config)
    wanted = {"state": state.value if state else "", "session": session, "tenant": tenant, "pool": pool}

    async def main() -> int:
        async with _client(settings) as client:
            async for view in client.tasks({name: value for name, value in wanted.items() if value}, limit):
                if as_json:
                    write_json(view, lines=True)
                else:
                    at = _readable("admitted_ms", view.admitted_ms)
                    OUT.print(f"{view.task_id}  {view.state:<9}  {at}  {view.pool_id}  {view.tenant}", markup=False)
        return Exit.OK

    raise typer.Exit(run(main))


@app.command("show")
def show(task: TaskArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """State of a task."""
    settings = settings_from(config)

    async def main() -> int:
        async with _client(settings) as client:
            view = await client.show(task)
        if as_json:
            write_json(view)
        else:
            for name, value in msgspec.to_builtins(view).items():
                OUT.print(f"{name:<20} {_readable(name, value)}", markup=False)
        return Exit.TASK_FAILED if view.state in _WITHOUT_SUCCESS else Exit.OK

    raise typer.Exit(run(main))


def _readable(name: str, value: Any) -> str:
    """A moment as local time, anything else as it is."""
    if name in ("admitted_ms", "placed_ms", "started_ms", "ended_ms"):
        return datetime.fromtimestamp(value / 1000).astimezone().isoformat(" ", "milliseconds")
    return str(value)


def _client(settings: Settings) -> GatewayClient:
    return GatewayClient(gateway_url(settings), secret("LLORCH_API_TOKEN"), tls=trust(settings))


async def _submit(settings: Settings, wish: Wish, *, stream: bool, as_json: bool) -> int:
    async with _client(settings) as client:
        try:
            request = build(*choose(await client.capabilities(), wish), wish)
        except NoChoice as error:
            raise Problem(str(error), exit_code=Exit.USAGE) from error
        accepted = await client.submit(request)
        if as_json:
            write_json(accepted, lines=stream)
        elif not stream:
            OUT.print(accepted.task_id)
            ERR.print(
                f"accepted at position {accepted.queue_position}, starts in about {accepted.predicted_start_ms} ms; "
                f"read it with: orchctl task stream {accepted.task_id}"
            )
        if not stream:
            return Exit.OK
        return await _stream_own(client, request, as_json=as_json)


async def _stream_own(client: GatewayClient, request: TaskRequest, *, as_json: bool) -> int:
    """Print the task's stream; the first Ctrl-C cancels the task, the second one leaves."""
    main = asyncio.current_task()
    assert main is not None
    loop = asyncio.get_running_loop()
    reading = asyncio.ensure_future(_print_stream(client.stream(request.task_id), as_json=as_json))

    def interrupted() -> None:
        loop.add_signal_handler(signal.SIGINT, main.cancel)
        reading.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted)
    try:
        return await reading
    except asyncio.CancelledError:
        ERR.print(f"\ncancelling {request.task_id} (Ctrl-C again leaves it running)")
        try:
            async with asyncio.timeout(_CANCEL_WITHIN_S):
                await _cancel(client, request.task_id, as_json=as_json)
        except TimeoutError:
            raise Problem(
                f"no receipt of the cancel within {_CANCEL_WITHIN_S:.0f} s",
                fix=f"orchctl task show {request.task_id}, then orchctl task cancel {request.task_id}",
                exit_code=Exit.UNREACHABLE,
            ) from None
        return Exit.INTERRUPTED


async def _cancel(client: GatewayClient, task_id: str, *, as_json: bool) -> None:
    pending = await client.cancel(task_id)
    view = pending or await client.show(task_id)
    if as_json:
        write_json({"receipt": pending is None, "task": view})
    elif pending is None:
        ERR.print(f"receipt: task {view.state} after {view.tokens_out} tokens, its slot is free")
    else:
        ERR.print(f"the wish is stored; the task is {view.state} and ends soon: orchctl task show {task_id}")


async def _print_stream(events: AsyncIterator[Event], *, as_json: bool) -> int:
    """Text to standard output, facts to standard error; with `as_json` one line per event."""
    async for event in events:
        data: dict[str, Any] = msgspec.json.decode(event.data, type=dict[str, Any])
        if as_json:
            write_json({"id": event.id, "event": event.event, "data": data}, lines=True)
        elif event.event == "token":
            sys.stdout.write(data["t"])
            sys.stdout.flush()
        elif event.event == "started":
            ERR.print(f"[bright_black]started on {data.get('replica_id', '?')} ({data.get('device', '?')})[/]")
        elif event.event == "narration":
            ERR.print(f"[bright_black]{data['human']}[/]")
        elif event.event == "metrics" and "restarted_at" in data:
            sys.stdout.write("\n")
            ERR.print("[bright_black]the engine was lost; the output begins anew, what stands above is void[/]")
        elif event.event == "end":
            sys.stdout.write("\n")
            ERR.print(
                f"[bright_black]{data['finish_reason']}: {data['tokens_out']} tokens in {data['decode_ms']} ms[/]"
            )
        if event.event == "error":
            if as_json:
                return Exit.TASK_FAILED
            raise Problem(data["message"], fix=data.get("hint", ""), code=data["code"], exit_code=Exit.TASK_FAILED)
    return Exit.OK
