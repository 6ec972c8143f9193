"""How much JSON becomes when it is decoded: a value of two bytes takes sixty and more, so that a body of 16 MiB of them
would take 400. So the values are counted before, in the bytes. Pure."""

from typing import Final

VALUES_MAX: Final = 200_000
"""Of one body. Decoded they take 35 MB at most; the largest requests that mean something have a tenth of it."""


def has_too_many(data: bytes, most: int = VALUES_MAX) -> bool:
    """Whether this is JSON of more than about `most` values. What is in strings does not count. Takes about as much
    memory as `data`, and no time for what is shorter than `most`."""
    if len(data) <= most or _marks(data) <= most:
        return False
    plain = data.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in data else data
    if plain.count(b'"') > 4 * most:  # two for each string, and a key has a value
        return True
    return sum(map(_marks, plain.split(b'"')[::2])) > most


def _marks(text: bytes) -> int:
    """At least the number of values."""
    return text.count(b",") + text.count(b"[") + text.count(b"{")
