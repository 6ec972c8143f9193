"""The answer to "are you there?" (`subjects.*_HERE`). Being asked is being there: what counts is whether the bus finds
anybody to ask. It is gone with the process's connection, which the kernel closes however the process dies."""

from collections.abc import Mapping

from llorch_shared.bus.port import Message


async def here(_: Message) -> tuple[bytes, Mapping[str, str]]:
    """A `Responder`."""
    return b"", {}
