"""Reads the NATS protocol: messages of our own subscriptions straight to their handlers, all else as the client does.

The client library's parser costs a regex, a dataclass, a queue hop and a task wake-up per message. Here a complete
`MSG` or `HMSG` of a registered subscription is cut out of the read buffer and handed over in the same call. Control
lines (PING, INFO, -ERR …) and subscriptions that are not ours go to the library's own code, one complete frame at a
time, so what it decides about the connection stays as it is.
"""

import logging
import operator
from collections.abc import Callable
from typing import Any, Final

from llorch_shared.bus.nats_library import Parser, errors
from llorch_shared.bus.port import ASKED_BY_HEADER

log = logging.getLogger(__name__)

LINE_BYTES_MAX: Final = 1024 * 1024
"""Longest control line: INFO of a large cluster is some kilobytes."""

Sink = Callable[[bytes, bytes, bytes, bytes], None]
"""(subject, reply, payload, header block). The block is empty for a message without headers."""

_PARTS: Final = operator.methodcaller("partition", ":")

RawSink = Callable[[bytes, bytes], None]


def parse_header(block: bytes) -> tuple[int, str, dict[str, str]]:
    """(status, its description, headers) of a header block; status 0 where the message is not a server's status.

    A server writes `ASKED_BY_HEADER` behind the block of who asks, whatever that is: behind one that does not end as
    blocks do, into its last line. Where it does not stand once, as a line of its own, it is told as empty.
    """
    text = block.decode("utf-8", "replace")
    first, *lines = text.split("\r\n")
    headers = {name: value.strip() for name, colon, value in map(_PARTS, lines) if colon}
    if ASKED_BY_HEADER in text and (ASKED_BY_HEADER not in headers or text.count(ASKED_BY_HEADER) > 1):
        headers[ASKED_BY_HEADER] = ""
    if len(first) <= 9:
        return 0, "", headers
    code, _, description = first[9:].partition(" ")
    return (int(code) if code.isdigit() else 0), description, headers


def _arguments(parts: list[bytes], with_header: bool) -> tuple[bytes, bytes, bytes, bytes, bytes]:
    """(subject, sid, reply, header size, total size) of a message line. ValueError: too many words or too few."""
    if with_header and len(parts) == 4:
        return parts[0], parts[1], b"", parts[2], parts[3]
    if with_header:
        subject, sid, reply, header_size, size = parts
        return subject, sid, reply, header_size, size
    subject, sid, reply, size = parts
    return subject, sid, reply, b"0", size


class FastParser(Parser):
    """Replaces the client's parser. `raw` and `sinks` map a subscription id (as bytes) to its handler."""

    def __init__(self, client: Any) -> None:
        self.raw: Final[dict[bytes, RawSink]] = {}
        self.sinks: Final[dict[bytes, Sink]] = {}
        self._rest = bytearray()
        self._wanted = 0
        self._resets = 0
        super().__init__(client)

    def reset(self) -> None:
        """Forget half a frame: the connection it came from is gone."""
        super().reset()
        self._rest = bytearray()
        self._wanted = 0
        self._resets += 1

    async def parse(self, data: bytes = b"") -> None:
        if self._rest:
            self._rest += data
            if len(self._rest) < self._wanted:
                return
            data = bytes(self._rest)
            self._rest = bytearray()
        elif not isinstance(data, bytes):
            data = bytes(data)
        at, end = 0, len(data)
        while at < end:
            at, self._wanted = self._deliver(data, at)
            if self._wanted or at >= end:
                break
            stop = self._frame_end(data, at)
            if stop > end:
                self._wanted = stop - at
                break
            resets = self._resets
            await self._delegate(data[at:stop])
            if resets != self._resets:
                return
            at = stop
        if at < end:
            self._rest += data[at:]

    def _deliver(self, data: bytes, at: int) -> tuple[int, int]:
        """Hand over every complete message from `at` on. Returns where it stopped, and how many bytes are needed from
        there to go on, 0 when the next frame is not ours to handle."""
        end, begin, count = len(data), at, 0
        raw, sinks, find = self.raw, self.sinks, data.find
        wanted = 0
        while at < end:
            if data.startswith(b"MSG ", at):
                words = at + 4
            elif data.startswith(b"HMSG ", at):
                words = at + 5
            else:
                break
            line_end = find(b"\r\n", at)
            if line_end < 0:
                wanted = self._line_wanted(end - at)
                break
            parts = data[words:line_end].split()
            start = split = line_end + 2
            try:
                if words == at + 4 and len(parts) == 3:
                    subject, sid, size = parts
                    reply = b""
                else:
                    subject, sid, reply, header_size, size = _arguments(parts, words == at + 5)
                    split = start + int(header_size)
                stop = start + int(size)
            except ValueError as error:
                raise errors.ProtocolError("nats: malformed message line") from error
            if stop + 2 > end:
                wanted = stop + 2 - at
                break
            try:
                handler = raw.get(sid)
                if handler is not None:
                    handler(subject, data[split:stop])
                else:
                    sink = sinks.get(sid)
                    if sink is None:
                        break
                    sink(subject, reply, data[split:stop], data[start:split])
            except Exception:
                log.exception("the handler of a message on %s failed", subject.decode("utf-8", "replace"))
            at = stop + 2
            count += 1
        stats = self.nc.stats
        stats["in_msgs"] += count
        stats["in_bytes"] += at - begin
        return at, wanted

    @staticmethod
    def _line_wanted(have: int) -> int:
        if have > LINE_BYTES_MAX:
            raise errors.ProtocolError("nats: control line too long")
        return have + 1

    def _frame_end(self, data: bytes, at: int) -> int:
        """End of the frame at `at`, beyond the data when it is not complete."""
        line_end = data.find(b"\r\n", at)
        if line_end < 0:
            return at + self._line_wanted(len(data) - at)
        if data.startswith((b"MSG ", b"HMSG "), at):
            return line_end + 4 + int(data[at:line_end].rsplit(None, 1)[-1])
        return line_end + 2

    async def _delegate(self, frame: bytes) -> None:
        self.buf = bytearray(frame)
        try:
            await super().parse(b"")
        except errors.ProtocolError:
            raise
        except Exception as error:
            # The client's read loop ends for good on any other exception, while the connection looks alive.
            log.exception("the client failed on a control line")
            raise errors.ProtocolError("nats: control line failed") from error
