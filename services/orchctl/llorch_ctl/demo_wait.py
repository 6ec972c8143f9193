"""Watching a pool get ready: bars for engine and model, the states of the replica, a clear word when it fails."""

import asyncio
import time
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from llorch_ctl.exits import Problem
from llorch_ctl.system import System
from llorch_shared import streams, subjects
from llorch_shared.bus.port import BusError, Message
from llorch_shared.wire.provision import EVENT_DECODER, PreparedEngine, ProvisionEvent, ResolvedModel
from llorch_shared.wire.registry import REPLICA_DECODER, ReplicaRecord, ReplicaState

READY_WITHIN_S: Final = 900.0
"""A first run fetches 130 MB; on a slow line that takes minutes."""
POLL_S: Final = 0.1
_WHERE: Final = "orchctl doctor checks this machine"


class _Bars:
    """One bar per provisioning job, made when its first event comes; a step counts as much as another."""

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
            name = event.target.partition(" ")[0]
            bar = self._bars[event.job] = self._progress.add_task(name, total=1.0, what="")
        ratio = event.bytes_done / event.bytes_total if event.bytes_total else 0.0
        share = 1.0 if event.done else (max(0, event.step - 1) + ratio) / max(1, event.steps)
        self._progress.update(bar, completed=share, what=_what(event))
        if event.done:
            self._progress.stop_task(bar)


def _what(event: ProvisionEvent) -> str:
    """The outcome, or the step with its bytes."""
    if event.error:
        return event.error
    match event.result:
        case PreparedEngine():
            return f"{event.result.engine} {event.result.engine_version} is here"
        case ResolvedModel():
            size = f"{event.result.size_bytes / 1e6:.0f} MB"
            return f"{event.result.model_ref.rpartition('/')[2]} is here ({size})"
    size = f" {event.bytes_done / 1e6:.0f} of {event.bytes_total / 1e6:.0f} MB" if event.bytes_total else ""
    return f"{event.kind}{size}: {_short(event.detail)}"


async def until_ready(system: System, pool_id: str, console: Console) -> ReplicaRecord:
    """Return the first ready replica. Raises Problem when provisioning or the replica fails, or time is up."""
    columns = (
        TextColumn("{task.description:<10}", table_column=Column(min_width=10, no_wrap=True)),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("[bright_black]{task.fields[what]}"),
    )
    with Progress(*columns, console=console, transient=False) as progress:
        bars = _Bars(progress)
        node = system.settings.poold.node_id
        subscription = await system.bus.subscribe(subjects.provision_progress_of_node(node), bars.saw)
        said = (ReplicaState.PROVISIONING, "")
        deadline = time.monotonic() + READY_WITHIN_S
        try:
            while time.monotonic() < deadline:
                replica = await _replica(system, pool_id)
                if replica is not None and (replica.state, replica.last_error) != said:
                    said = (replica.state, replica.last_error)
                    why = f": {replica.last_error}" if replica.last_error else ""
                    progress.console.print(
                        f"replica    {replica.replica_id} is {replica.state}{why}", style="bright_black"
                    )
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
            fix=f"{failed.hint or 'see the log'}. {_WHERE}; log: {system.folder.logs}/provisioner.log",
        )
    if replica is not None and replica.state is ReplicaState.FAILED:
        raise Problem(
            f"replica {replica.replica_id} has failed: {replica.last_error}",
            fix=f"{_WHERE}; log: {system.folder.logs}/poold.log",
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
    """The end of a long path."""
    return text if len(text) <= 48 else "…" + text[-47:]
