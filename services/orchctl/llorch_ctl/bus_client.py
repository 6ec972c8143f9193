"""orchctl's own connection to the bus: tried for a few seconds, then told to the person at the terminal."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from llorch_ctl.exits import Exit, Problem
from llorch_shared.bus import nats
from llorch_shared.bus.port import Bus, NoStream
from llorch_shared.logs import redact
from llorch_shared.settings import NatsSettings
from llorch_shared.settings_loading import secret

CONNECT_WITHIN_S: Final = 3.0


async def connect(settings: NatsSettings, *, within_s: float) -> Bus:
    """Raises Problem when nobody answers in time."""
    trying = asyncio.create_task(nats.connect(settings, name="orchctl", password=secret("NATS_PASSWORD")))
    try:
        bus = await asyncio.wait_for(trying, within_s)
    except TimeoutError:
        raise Problem(
            f"nobody answers at {redact(settings.url)} (the bus)",
            fix="start the system (orchctl up), or point NATS_URL or --config at a running one",
            exit_code=Exit.UNREACHABLE,
        ) from None
    return bus


@asynccontextmanager
async def connected(settings: NatsSettings) -> AsyncIterator[Bus]:
    """Raises Problem when nobody answers, and when the bus has never been used by llama-orch."""
    bus = await connect(settings, within_s=CONNECT_WITHIN_S)
    try:
        yield bus
    except NoStream as error:
        raise Problem(
            f"the bus at {redact(settings.url)} answers, but holds no llama-orch: {error}",
            fix="start the system: orchctl up",
            exit_code=Exit.UNREACHABLE,
        ) from error
    finally:
        await bus.close()
