"""Reading server-sent events: bytes in whatever pieces they come, whole events out; and what a reader has seen.

`Reading` is everything a client needs to leave a broken connection and go on at another gateway: the id of the last
event, and the highest token index, so that nothing is shown twice.
"""

from typing import Final

from llorch_shared.wire.frames import Event, parse_cursor, split_events

EVENT_BYTES_MAX: Final = 1024 * 1024
_TERMINAL: Final = ("end", "error")


class BadStream(ValueError):
    """What arrives is no event stream: no event ends within a megabyte."""


class Reading:
    """One task's stream over all its connections."""

    def __init__(self) -> None:
        self._buffer = b""
        self.last_id = ""
        """For the Last-Event-ID header; empty while only events without an id were seen."""
        self.tokens = 0
        """Tokens seen; the next one must carry this index."""
        self.ended = False
        self.retry_ms: int | None = None
        """The server's wish for the delay before a reconnect."""

    def connection_lost(self) -> None:
        """Half an event of a broken connection is worth nothing: it comes again."""
        self._buffer = b""

    def feed(self, data: bytes) -> list[Event]:
        """Events that are now complete and new. Raises BadStream."""
        whole, separator, self._buffer = (self._buffer + data).rpartition(b"\n\n")
        if len(self._buffer) > EVENT_BYTES_MAX:
            raise BadStream("an event is larger than a megabyte")
        self._read_retry(whole)
        return [event for event in split_events(whole + separator) if self._is_new(event)]

    def _read_retry(self, whole: bytes) -> None:
        for line in whole.split(b"\n"):
            if line.startswith(b"retry:") and (value := line[6:].strip()).isdigit():
                self.retry_ms = int(value)

    def _is_new(self, event: Event) -> bool:
        if self.ended:
            return False
        if event.event == "token" and event.id:
            index = parse_cursor(event.id).token
            if index < self.tokens:
                return False
            self.tokens = index + 1
        self.last_id = event.id or self.last_id
        self.ended = event.event in _TERMINAL
        return True
