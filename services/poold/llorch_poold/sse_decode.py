"""Incremental decoder of server-sent events: bytes in at any split, complete `data` payloads out.

Only `data` matters to the adapters: comments, ids and event names are passed over. Payloads stay bytes, so a UTF-8
character split over two reads is whole again before anybody decodes it. LF and CRLF line ends are understood. A line
that no event stream has is an error and not passed over, as browsers do it: here it may be a token that got broken.

    BrokenStream
    ├─ StreamTooLong     one event is larger than any engine sends
    └─ NotAnEvent        a line is none of an event stream
"""

from typing import Final

EVENT_BYTES_MAX: Final = 8 * 1024 * 1024
"""The last event of llama-server repeats the prompt."""
SHOWN_BYTES: Final = 60


_PASSED_OVER: Final = (b":", b"event:", b"id:", b"retry:")


class BrokenStream(ValueError):
    """What comes is no stream of events."""


class StreamTooLong(BrokenStream): ...


class NotAnEvent(BrokenStream): ...


class SseDecoder:
    __slots__ = ("_data", "_rest", "_size")

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._size = 0
        """Bytes in `_data`."""

    def feed(self, chunk: bytes) -> list[bytes]:
        """The payloads that are complete now. Raises BrokenStream."""
        if self._rest:
            chunk = self._rest + chunk
        elif chunk.startswith(b"data: ") and chunk.endswith(b"\n\n") and chunk.count(b"\n") == 2 and not self._data:
            return [chunk[6:-2]]
        lines = chunk.split(b"\n")
        self._rest = lines.pop()
        payloads: list[bytes] = []
        data = self._data
        for line in lines:
            if line.endswith(b"\r"):
                line = line[:-1]
            if line.startswith(b"data:"):
                self._size += len(line)
                data.append(line[6:] if line.startswith(b" ", 5) else line[5:])
            elif not line:
                if data:
                    payloads.append(data[0] if len(data) == 1 else b"\n".join(data))
                    data.clear()
                    self._size = 0
            elif not line.startswith(_PASSED_OVER):
                raise NotAnEvent(f"a line is no event: {line[:SHOWN_BYTES]!r}")
        if self._size + len(self._rest) > EVENT_BYTES_MAX:
            raise StreamTooLong(f"an event is over {EVENT_BYTES_MAX} bytes")
        return payloads

    @property
    def pending(self) -> bool:
        """Something incomplete is held: a stream that ends now was cut."""
        return bool(self._rest or self._data)
