"""One reader of one stream over all its connections: its place, and what it writes down."""

from typing import Final

import msgspec

from chaos import history
from chaos.history import Ended, Odd, Restarted, Tokens, now
from llorch_shared.errors import ErrorBody
from llorch_shared.wire.frames import End, Event, Metrics, Token

JOIN_S: Final = 0.05
"""Tokens that come within this time are one entry."""


class Reading:
    def __init__(self, writer: history.Writer, number: int, task: str) -> None:
        self._writer: Final = writer
        self._number: Final = number
        self._task: Final = task
        self._tokens: Tokens | None = None
        self.cursor = ""
        self.count = 0
        self.finished = False

    def take(self, event: Event) -> None:
        """One event, in the order of arrival."""
        if event.id:
            self.cursor = event.id
        match event.event:
            case "token":
                self._token(msgspec.json.decode(event.data, type=Token))
            case "end":
                end = msgspec.json.decode(event.data, type=End)
                self._end(tokens_out=end.tokens_out, finish_reason=end.finish_reason, restarted_at=end.restarted_at)
            case "error":
                error = msgspec.json.decode(event.data, type=ErrorBody)
                self._end(code=str(error.code), message=error.message)
            case "metrics":
                self._metrics(msgspec.json.decode(event.data, type=Metrics))
            case "started" | "narration":
                pass
            case other:
                self._writer.write(Odd(at=now(), task=self._task, what=f"an event {other}"))

    def flush(self) -> None:
        """Write down what was seen so far."""
        if self._tokens is not None:
            self._writer.write(self._tokens)
            self._tokens = None

    def _token(self, token: Token) -> None:
        self.count += 1
        at = now()
        if self._tokens is not None and at - self._tokens.at > JOIN_S:
            self.flush()
        if self._tokens is None:
            self._tokens = Tokens(at=at, until=at, reader=self._number, task=self._task, indices=[], texts=[])
        self._tokens.indices.append(token.i)
        self._tokens.texts.append(token.t)
        self._tokens = msgspec.structs.replace(self._tokens, until=at)

    def _metrics(self, metrics: Metrics) -> None:
        if metrics.restarted_at is not None:
            self.flush()
            self._writer.write(Restarted(at=now(), reader=self._number, task=self._task, index=metrics.restarted_at))

    def _end(
        self,
        *,
        tokens_out: int = 0,
        finish_reason: str = "",
        code: str = "",
        message: str = "",
        restarted_at: int | None = None,
    ) -> None:
        self.flush()
        ended = Ended(
            at=now(),
            reader=self._number,
            task=self._task,
            tokens_out=tokens_out,
            finish_reason=finish_reason,
            code=code,
            message=message,
            restarted_at=restarted_at,
        )
        self._writer.write(ended)
        self.finished = True
