"""A process that does not read what the bus sends it: the server hangs up on it, and nothing is lost by that."""

import asyncio
import os
import signal
from pathlib import Path

import msgspec
import pytest

from llorch_shared import subjects
from support.client import follow, task_request
from support.system import System, mock_pool

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

LITTLE_PATIENCE = "max_pending: 1MB\n"
"""What the server keeps for a client that does not read, beside what its socket takes."""
SIGN = "Slow Consumer Detected"
PIECE = b"x" * 65_536
FLOOD_MAX = 4_000


async def test_a_process_that_does_not_read_is_cut_off_and_goes_on_where_it_was(tmp_path: Path) -> None:
    system = System(tmp_path, pools=[mock_pool(replicas=1, slots=4, rate=50)], gateways=2)
    system.nats.config = msgspec.structs.replace(system.nats.config, extra=LITTLE_PATIENCE)
    async with system:
        for victim in ("gateway-1", "scheduler-1", "poold-1"):
            running = task_request(max_tokens=60, prompt=f"while {victim} sleeps")
            await system.client(1).submit(running)
            reading = asyncio.create_task(follow(system.clients, running.task_id, deadline_s=120))
            await system.client(2).read(running.task_id, tokens_max=2)
            os.kill(system.pid_of(victim), signal.SIGSTOP)
            try:
                await flood(system)
            finally:
                os.kill(system.pid_of(victim), signal.SIGCONT)
            transcript = await reading
            transcript.check()
            assert len(transcript.tokens) == 60, victim
            assert system.processes[victim].starts == 1
            system.processes[victim].check_alive()
            await system.ready(victim)
            after = task_request(max_tokens=3)
            await system.client(1).submit(after)
            assert (await follow(system.clients, after.task_id)).end is not None, victim


async def flood(system: System) -> None:
    """Signals that every process listens to, until the server has given up on one."""
    log = system.nats.folder / "nats.log"
    before = log.read_text().count(SIGN)
    for _ in range(FLOOD_MAX // 16):
        for _ in range(16):
            system.bus.publish(subjects.cancel_signal("no-such-task"), PIECE)
        await system.bus.flush()
        if log.read_text().count(SIGN) > before:
            return
    raise AssertionError("the server keeps everything for a process that does not read")
