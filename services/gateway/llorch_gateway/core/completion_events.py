"""Frames of a token stream as the events of another interface: what is said in which order, whoever's events they are.

Before the first token nothing is said but heartbeats, for only then is it sure that the engine takes the prompt. An
error before anything was said gives no event: it can still be the answer.
"""

from abc import abstractmethod
from typing import ClassVar

from llorch_gateway.core.completion_frames import RESTARTED, CompletionFrames
from llorch_shared.errors import ErrorBody
from llorch_shared.wire.frames import ToolCallDelta
from llorch_shared.wire.task import TaskRequest


class CompletionEvents(CompletionFrames):
    """`feed` gives the bytes of the stream."""

    HEARTBEAT: ClassVar[bytes]

    def __init__(self, task: TaskRequest) -> None:
        super().__init__(task)
        self._greeted = False
        self._begun = False

    def feed(self, data: bytes) -> bytes:
        text, alive = self.take(data)
        out: list[bytes] = []
        if self.generates and not self._greeted:
            self._greeted = True
            self._greet(out)
        if text or self.logprobs:
            self._say(text or b'""', out)
        for delta in self.calls:
            self._call(delta, out)
        if self.over:
            self._end(out)
        elif alive:
            out.append(self.HEARTBEAT)
        self._begun = self._begun or bool(out)
        return b"".join(out)

    def broken(self, error: ErrorBody) -> bytes:
        """The stream goes no further, for a reason that is not the task's."""
        self.over = True
        return self._failed(error)

    def _end(self, out: list[bytes]) -> None:
        if self.error is not None:
            if self._begun or out:
                out.append(self._failed(self.error))
            return
        if not self._greeted:
            self._greeted = True
            self._greet(out)
        self._finish(out)

    def _restarted(self, texts: list[bytes]) -> None:
        self.over = True
        self.error = RESTARTED

    @abstractmethod
    def _greet(self, out: list[bytes]) -> None:
        """The answer begins."""

    @abstractmethod
    def _say(self, text: bytes, out: list[bytes]) -> None:
        """`text` is JSON; its log-probabilities, where they are asked for, are in `logprobs`."""

    @abstractmethod
    def _call(self, delta: ToolCallDelta, out: list[bytes]) -> None:
        """A piece of a call."""

    @abstractmethod
    def _finish(self, out: list[bytes]) -> None:
        """The task is done."""

    @abstractmethod
    def _failed(self, error: ErrorBody) -> bytes:
        """The event of an error in the stream."""
