"""Calls of tools, put together from the pieces that tokens carry."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from llorch_shared.wire.frames import ToolCallDelta
from llorch_shared.wire.task import CalledFunction, ToolCall


@dataclass(slots=True)
class Calling:
    """A call on its way."""

    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)

    def take(self, delta: ToolCallDelta) -> None:
        self.id = delta.id or self.id
        self.name = delta.function.name or self.name
        self.arguments.append(delta.function.arguments)

    def made(self) -> ToolCall:
        return ToolCall(id=self.id, function=CalledFunction(name=self.name, arguments="".join(self.arguments)))


class Calls:
    """The calls of one answer, by their index in it."""

    def __init__(self) -> None:
        self._calls: dict[int, Calling] = {}

    def take(self, deltas: Iterable[ToolCallDelta]) -> None:
        for delta in deltas:
            self._calls.setdefault(delta.index, Calling()).take(delta)

    def made(self) -> tuple[ToolCall, ...]:
        return tuple(call.made() for _, call in self.by_index())

    def by_index(self) -> list[tuple[int, Calling]]:
        return sorted(self._calls.items())

    def drop(self, index: int) -> None:
        self._calls.pop(index, None)

    def clear(self) -> None:
        self._calls.clear()
