"""A system from its start to its last process, with the signals of the terminal.

The first Ctrl-C (or SIGTERM) wishes the end: whatever runs is ended in order. The second one kills. It is checked, and
said, that nothing is left.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable

from llorch_ctl.exits import Exit
from llorch_ctl.logfiles import LogView
from llorch_ctl.state_dir import StateDir
from llorch_ctl.supervisor import descendants
from llorch_ctl.system import System
from llorch_shared import lifecycle
from llorch_shared.settings import Settings

Body = Callable[[System], Awaitable[int]]
"""What to do while the system runs; returns the exit code. Cancelled by the first Ctrl-C."""

Say = Callable[[str], None]


def run_system(settings: Settings, view: LogView, body: Body, *, say: Say, interrupted: Exit) -> int:
    """Start everything, run `body`, end everything. Returns its exit code, or `interrupted` after a Ctrl-C. Raises
    Problem when the system cannot start."""
    with StateDir(settings.state_path()) as folder:

        async def main(stop: lifecycle.Stop) -> int:
            system = System(settings, folder, view)
            _second_signal_kills(stop, system)
            running = asyncio.ensure_future(_run(system, body))
            stopping = asyncio.ensure_future(stop.wait())
            await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if not running.done():
                say("stopping in order; running tasks may finish. Ctrl-C again kills")
                running.cancel()
            try:
                return await running
            except asyncio.CancelledError:
                return interrupted
            finally:
                _say_what_is_left(system, say)

        return lifecycle.run(main)


async def _run(system: System, body: Body) -> int:
    async with system:
        return await body(system)


def _say_what_is_left(system: System, say: Say) -> None:
    if system.killed_at_stop:
        say(f"had to be killed: {', '.join(system.killed_at_stop)}")
    if left := descendants():
        say(f"still there: {', '.join(f'{process.name()} ({process.pid})' for process in left)}")
    else:
        say("stopped; no process is left")


def _second_signal_kills(stop: lifecycle.Stop, system: System) -> None:
    loop = asyncio.get_running_loop()

    def wished(number: signal.Signals) -> None:
        if stop:
            system.supervisor.kill_now()
        stop.wish(number.name)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, wished, number)
