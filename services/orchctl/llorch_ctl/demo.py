"""`orchctl demo`: the whole system on this machine with a real engine and a real model, shown in one minute.

Three tasks: one over HTTP, one straight on the bus, one cancelled half-way. The demo has a state folder of its own, so
a second run finds engine and model there. What it runs on is decided in `demo_settings`.
"""

import asyncio
import os
import time
import uuid
from typing import Any, Final

import msgspec
from rich.console import Console

from llorch_ctl.core.measured import Measured
from llorch_ctl.core.task_request import chatml
from llorch_ctl.demo_settings import POOL
from llorch_ctl.demo_wait import until_ready
from llorch_ctl.exits import Exit, Problem
from llorch_ctl.gateway_client import GatewayClient
from llorch_ctl.system import System
from llorch_shared import subjects
from llorch_shared.bus.port import Message
from llorch_shared.settings_loading import secret
from llorch_shared.wire.frames import split_events
from llorch_shared.wire.run import TaskView
from llorch_shared.wire.task import Priority, TaskRequest, Workload

TENANT: Final = "default"
TASKS_WITHIN_S: Final = 180.0
CANCEL_AFTER_TOKENS: Final = 24

SEED: Final = 7
"""The same seed gives the same text in every run."""
SKY: Final = "Why is the sky blue? Answer in one short sentence."
FRANCE: Final = "What is the capital of France, and what is it known for?"
STORY: Final = "Tell me a long story about a lighthouse keeper and the sea."


class Demo:
    """What runs while the system is up. Results are collected in `facts`."""

    def __init__(self, console: Console, *, began: float, keep: bool) -> None:
        self._console: Final = console
        self._began: Final = began
        self._keep: Final = keep
        self.facts: Final[dict[str, Any]] = {}

    async def run(self, system: System) -> int:
        async with GatewayClient(system.gateway_url, secret("AUTH_TOKEN")) as client:
            replica = await until_ready(system, POOL, self._console)
            self.facts["ready_s"] = round(time.monotonic() - self._began, 1)
            self.facts["device"] = replica.device
            engine = f"{replica.engine} {replica.engine_version}"
            self._console.print(
                f"\n[green]ready[/] after {self.facts['ready_s']} s: {engine} on [bold]{replica.device}[/], "
                f"{replica.slots_total} slots\n"
            )
            try:
                async with asyncio.timeout(TASKS_WITHIN_S):
                    over_http = await self._over_http(client, system)
                    on_bus = await self._on_the_bus(system, client)
                    await self._cancelled(client, system)
            except TimeoutError:
                raise Problem(
                    f"the three tasks did not end within {TASKS_WITHIN_S:.0f} s",
                    fix=f"what each service says: {system.folder.logs}",
                ) from None
            self._show_measured(over_http, on_bus)
            self._show_next(system)
            if self._keep:
                self._console.print("\nit stays up until Ctrl-C")
                await system.supervisor.given_up.wait()
        return Exit.OK

    async def _over_http(self, client: GatewayClient, system: System) -> tuple[Measured, TaskView]:
        self._console.rule("[bold]1  over HTTP", align="left", style="bright_black")
        request = _request(system, SKY, max_tokens=96)
        self._command(f"POST {system.gateway_url}/v1/tasks", f"GET …/v1/tasks/{request.task_id}/stream")
        measured = Measured(sent_at=time.monotonic())
        accepted = await client.submit(request)
        self._said(f"202: position {accepted.queue_position}, starts in about {accepted.predicted_start_ms} ms")
        async for event in client.stream(request.task_id):
            self._saw(measured, event.event, event.data)
        self._ended(measured)
        return measured, await client.show(request.task_id)

    async def _on_the_bus(self, system: System, client: GatewayClient) -> tuple[Measured, TaskView]:
        """Publish is admission: no gateway is involved but for the lookup afterwards."""
        self._console.rule("[bold]2  straight on the bus, without HTTP", align="left", style="bright_black")
        request = _request(system, FRANCE, max_tokens=96)
        subject = subjects.admission(POOL, Priority.INTERACTIVE, TENANT)
        tokens = subjects.tokens_of_task(request.task_id)
        server = f"nats -s {system.settings.nats.url}"
        self._command(f"{server} sub '{tokens}'", f'{server} pub {subject} "$(cat {self._save(system, request)})"')
        frames: asyncio.Queue[Message] = asyncio.Queue()
        subscription = await system.bus.subscribe(tokens, frames.put_nowait)
        try:
            measured = Measured(sent_at=time.monotonic())
            stored = await system.bus.store(subject, msgspec.json.encode(request), msg_id=request.task_id)
            self._said(f"stored in {stored.stream} as message {stored.seq}")
            while not (measured.end or measured.error):
                for event in split_events((await frames.get()).data):
                    self._saw(measured, event.event, event.data)
        finally:
            await subscription.close()
        self._ended(measured)
        return measured, await client.show(request.task_id)

    async def _cancelled(self, client: GatewayClient, system: System) -> None:
        self._console.rule("[bold]3  cancelled half-way", align="left", style="bright_black")
        request = _request(system, STORY, max_tokens=1000)
        self._command(f"DELETE {system.gateway_url}/v1/tasks/{request.task_id}   (after {CANCEL_AFTER_TOKENS} tokens)")
        measured = Measured(sent_at=time.monotonic())
        await client.submit(request)
        cancelling: asyncio.Task[tuple[float, TaskView | None]] | None = None
        async for event in client.stream(request.task_id):
            self._saw(measured, event.event, event.data)
            if measured.tokens >= CANCEL_AFTER_TOKENS and cancelling is None:
                cancelling = asyncio.create_task(_cancel(client, request.task_id))
        if cancelling is None:
            self._console.print("\n[yellow]the model ended by itself before it could be cancelled[/]")
            return
        took_ms, pending = await cancelling
        view = await client.show(request.task_id)
        receipt = "204" if pending is None else "202 (the receipt is still out)"
        self._console.print(
            f"\n[bright_black]receipt[/]    {receipt}: [bold]{view.state}[/] after {view.tokens_out} tokens; "
            f"{took_ms:.0f} ms from the wish until the engine's slot was free again\n"
        )
        self.facts["cancel"] = {
            "receipt": pending is None,
            "state": str(view.state),
            "tokens_out": view.tokens_out,
            "slot_free_ms": round(took_ms),
        }

    def _saw(self, measured: Measured, event: str, raw: bytes) -> None:
        data: dict[str, Any] = msgspec.json.decode(raw, type=dict[str, Any])
        if event == "started":
            self._said(f"started on {data.get('replica_id', '?')}, device {data.get('device', '?')}\n")
        if event == "token":
            self._console.print(data["t"], end="", markup=False, style="bold")
        measured.saw(event, data, time.monotonic())

    def _ended(self, measured: Measured) -> None:
        if measured.error:
            raise Problem(
                f"the task failed: {measured.error.get('message')}",
                code=str(measured.error.get("code", "")),
                exit_code=Exit.TASK_FAILED,
            )
        self._console.print(
            f"\n[bright_black]end[/]        {measured.end['finish_reason']}: {measured.end['tokens_out']} tokens, "
            f"first after {measured.first_token_ms:.0f} ms, then {measured.tokens_per_s} per second\n"
        )

    def _show_measured(self, over_http: tuple[Measured, TaskView], on_bus: tuple[Measured, TaskView]) -> None:
        self._console.rule("[bold]measured", align="left", style="bright_black")
        for name, (measured, view) in {"http": over_http, "bus": on_bus}.items():
            hops = _hops(measured, view)
            self.facts[name] = {
                "first_token_ms": measured.first_token_ms,
                "tokens_per_s": measured.tokens_per_s,
                "tokens_out": measured.end["tokens_out"],
                "hops_ms": hops,
            }
            path = ", ".join(f"{hop} {took}" for hop, took in hops.items())
            self._console.print(
                f"{name:<10} first token {measured.first_token_ms:.0f} ms, {measured.tokens_per_s} tokens/s   "
                f"[bright_black]ms: {path}[/]"
            )
        if cancel := self.facts.get("cancel"):
            self._console.print(f"cancel     slot free {cancel['slot_free_ms']} ms after the wish")
        self._console.print(f"ready      {self.facts['ready_s']} s after the command was typed")

    def _show_next(self, system: System) -> None:
        self._console.rule("[bold]try next", align="left", style="bright_black")
        if not self._keep:
            self._console.print("make demo ARGS=--keep    [bright_black]# stays up; then, in another terminal:[/]")
        config = os.path.relpath(system.folder.config)
        request = self._save(system, _request(system, SKY, max_tokens=96))
        for line in (
            f"export LLORCH_CONFIG={config} PATH=$PWD/.venv/bin:$PATH",
            "orchctl status --watch",
            "orchctl task submit --stream --template chatml 'What is the capital of France?'",
            f"curl -s {system.gateway_url}/v1/tasks -H 'content-type: application/json' -d @{request}",
            f'curl -N {system.gateway_url}/v1/tasks/$(grep -o \'"task_id":"[^"]*\' {request} | cut -c12-)/stream',
        ):
            self._console.print(line, markup=False)

    def _save(self, system: System, request: TaskRequest) -> str:
        """The request as a file that the printed commands can name."""
        path = system.folder.path / "request.json"
        path.write_bytes(msgspec.json.encode(request))
        return os.path.relpath(path)

    def _command(self, *lines: str) -> None:
        for line in lines:
            self._console.print(f"[cyan]$[/] [bright_black]{line}[/]")

    def _said(self, text: str) -> None:
        self._console.print(f"[bright_black]{text}[/]")


async def _cancel(client: GatewayClient, task_id: str) -> tuple[float, TaskView | None]:
    began = time.monotonic()
    pending = await client.cancel(task_id)
    return (time.monotonic() - began) * 1000, pending


def _hops(measured: Measured, view: TaskView) -> dict[str, int]:
    """Where the time to the first token went: the run record has three of the hops, the client's clock the rest."""
    node_ms = int(measured.end.get("latency_first_token_ms") or 0)
    return {
        "queued": view.placed_ms - view.admitted_ms,
        "to the node": view.started_ms - view.placed_ms,
        "engine": max(0, node_ms - (view.started_ms - view.admitted_ms)),
        "in and out": max(0, round(measured.first_token_ms) - node_ms),
    }


def _request(system: System, text: str, *, max_tokens: int) -> TaskRequest:
    pool = system.settings.pools[0]
    return TaskRequest(
        task_id=str(uuid.uuid4()),
        session_id=str(uuid.uuid4()),
        workload=Workload.COMPLETION,
        model_ref=pool.model,
        engine=pool.engine,
        ctx=pool.ctx,
        priority=Priority.INTERACTIVE,
        max_tokens=max_tokens,
        deadline_ms=600_000,
        seed=SEED,
        prompt=chatml(text),
    )
