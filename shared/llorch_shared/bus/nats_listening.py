"""Subscriptions that the server has taken away, because the user's permissions were changed: it does not give them back
by itself, so they are asked for again until it does.

Meanwhile the connection counts as down: who does not hear what changes must not go on as if nothing did.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from llorch_shared.bus.nats_client import BusClient
from llorch_shared.bus.port import Unanswered

AGAIN_S: Final = 1.0


class Listening:
    """`write` to the server, whether or not the connection counts as standing; `pong` waits until it has read that, and
    raises Unanswered. `whole` is called when nothing is missing any more."""

    def __init__(
        self,
        client: BusClient,
        *,
        write: Callable[[bytes], object],
        pong: Callable[[], Awaitable[None]],
        whole: Callable[[], None],
    ) -> None:
        self._client: Final = client
        self._write: Final = write
        self._pong: Final = pong
        self._whole: Final = whole
        self._missing: Final[dict[int, str]] = {}
        """sid → the server's words."""
        self._asking: asyncio.Task[None] | None = None
        self.new: Final[set[int]] = set()
        """Subscriptions whose first answer is awaited: a refusal is told to their caller."""

    @property
    def problem(self) -> str:
        return next(iter(self._missing.values()), "")

    def refused(self, subject: str, words: str) -> bool:
        """Whether a subscription that stood is gone. `subject` in lower case, as the server reports it."""
        gone = [
            sid
            for sid, subscription in self._client._subs.items()
            if subscription._subject.lower() == subject and sid not in self.new
        ]
        self._missing.update(dict.fromkeys(gone, words))
        if gone and self._asking is None:
            self._asking = asyncio.create_task(self._ask(), name="subscribe again")
        return bool(gone)

    async def _ask(self) -> None:
        while self._missing:
            await asyncio.sleep(AGAIN_S)
            asked, subs = dict(self._missing), self._client._subs
            self._missing.clear()
            for sid in asked:
                if (subscription := subs.get(sid)) is not None:
                    self._write(f"SUB {subscription._subject} {subscription._queue} {sid}\r\n".encode())
            try:
                await self._pong()
            except Unanswered:
                self._missing.update(asked)
        self._asking = None
        self._whole()

    def stop(self) -> None:
        """The connection broke or is closed: with the next one all subscriptions are sent again."""
        self._missing.clear()
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None
