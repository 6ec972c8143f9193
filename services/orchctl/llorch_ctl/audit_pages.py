"""Reads the audit stream and the run records in pages, so that memory does not grow with them."""

from collections.abc import AsyncIterator
from typing import Final

from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus, Message

AUDITS_PAGE: Final = 2_000
RUNS_PAGE: Final = 200
"""Of a task under way the whole request is kept: up to 1 MiB."""


async def audits(bus: Bus, from_seq: int, to_seq: int) -> AsyncIterator[list[Message]]:
    """Pages of records between two sequences, both included. Raises BusError."""
    async for page in _pages(bus, streams.AUD, subjects.ALL_AUDITS, from_seq, AUDITS_PAGE):
        within = [message for message in page if message.seq <= to_seq]
        yield within
        if len(within) < len(page) or (page and page[-1].seq >= to_seq):
            return


def runs(bus: Bus) -> AsyncIterator[list[Message]]:
    """Pages of the newest run record of every task; one that moves while they are read may come twice. Raises
    BusError."""
    return _pages(bus, streams.RUN, subjects.ALL_RUNS, 1, RUNS_PAGE)


def accounts(bus: Bus) -> AsyncIterator[list[Message]]:
    """Pages of the accounts of sessions; one that changes while they are read may come twice. Raises BusError."""
    return _pages(bus, streams.SES, subjects.ALL_SESSIONS, 1, RUNS_PAGE)


async def _pages(bus: Bus, stream: str, subject: str, from_seq: int, size: int) -> AsyncIterator[list[Message]]:
    seq = from_seq
    while True:
        page = list(await bus.replay(stream, subject, from_seq=seq, limit=size))
        if page:
            yield page
            seq = page[-1].seq + 1
        if len(page) < size:
            return
