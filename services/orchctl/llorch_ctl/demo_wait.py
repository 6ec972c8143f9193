"""Watching a pool get ready: bars for engine and model, the states of the replica, a clear word when it fails."""

import asyncio
import time
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from llorch_ctl.exits import Problem
from llorch_ctl.system import System
from llorch_shared import streams, subjects
from llorch_shared.bus.port import BusError, Message
from llorch_shared.wire.provision import EVENT_DECODER, ProvisionEvent
from llorch_shared.wire.registry import REPLICA_DECODER, ReplicaRecord, ReplicaState

READY_WITHIN_S: Final = 900.0
"""A first run fetches 130 MB; on a slow line that takes minutes."""
POLL_S: Final = 0.1


class _Bars:
    """One bar per provisioning job, made when its first event comes."""

    def __init__(self, progress: Progress) -> None:
        self._progress: Final = progress
        self._bars: dict[str, TaskID] = {}
        self.failed: ProvisionEvent | None = None

    def saw(self, message: Message) -> None:
        event = EVENT_DECODER.decode(message.data)
        if event.error:
            self.failed = event
        bar = self._bars.get(event.job)
        if bar is None:
            bar = self._bars[event.job] = self._progress.add_task(_short(event.target), total=None, what="")
        what = "done" if event.done and not event.error else event.error or f"{event.kind} {_short(event.detail)}"
        total = event.bytes_total or None
        done = event.bytes_total if event.done and total else event.bytes_done
        if event.done and total is None:
            total, done = 1, 1
        self._progress.update(bar, total=total, completed=done, what=what)
        if event.done:
            self._progress.stop_task(bar)


async def until_ready(system: System, pool_id: str, console: Console) -> ReplicaRecord:
    """Return the first ready replica. Raises Problem when provisioning or the replica fails, or time is up."""
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TimeElapsedColumn(),
        TextColumn("[bright_black]{task.fields[what]}"),
    )
    with Progress(*columns, console=console, transient=False) as progress:
        bars = _Bars(progress)
        node = system.settings.poold.node_id
        subscription = await system.bus.subscribe(f"llorch.prov.{node}.progress.*", bars.saw)
        said = ReplicaState.PROVISIONING
        deadline = time.monotonic() + READY_WITHIN_S
        try:
            while time.monotonic() < deadline:
                replica = await _replica(system, pool_id)
                if replica is not None and replica.state is not said:
                    said = replica.state
                    progress.console.print(f"[bright_black]replica    {replica.replica_id} is {said}[/]")
                _raise_failure(system, bars.failed, replica)
                if replica is not None and replica.state is ReplicaState.READY:
                    return replica
                await asyncio.sleep(POLL_S)
        finally:
            await subscription.close()
    raise Problem(
        f"the pool was not ready within {READY_WITHIN_S / 60:.0f} minutes",
        fix=f"look at {system.folder.logs}/poold.log",
    )


def _raise_failure(system: System, failed: ProvisionEvent | None, replica: ReplicaRecord | None) -> None:
    if failed is not None:
        raise Problem(
            f"{failed.target} cannot be made ready: {failed.error}",
            fix=failed.hint or f"orchctl doctor; the whole log: {system.folder.logs}/provisioner.log",
        )
    if replica is not None and replica.state is ReplicaState.FAILED:
        raise Problem(
            f"the engine does not start: {replica.last_error}", fix=f"the whole log: {system.folder.logs}/poold.log"
        )


async def _replica(system: System, pool_id: str) -> ReplicaRecord | None:
    try:
        messages = await system.bus.snapshot(streams.REG, subjects.registry("replica.>"))
    except BusError:
        return None
    found = [REPLICA_DECODER.decode(message.data) for message in messages if not message.deleted]
    mine = [replica for replica in found if replica.pool_id == pool_id]
    return next((one for one in mine if one.state is ReplicaState.READY), mine[0] if mine else None)


def _short(text: str) -> str:
    """A target's first word, and the end of a long path."""
    return text if len(text) <= 48 else "…" + text[-47:]
