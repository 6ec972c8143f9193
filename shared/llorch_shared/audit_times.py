"""Where in the audit stream a time is."""

from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus


async def first_since(bus: Bus, from_ms: int) -> int:
    """The sequence of the first audit record that was stored at `from_ms` (Unix milliseconds) or later; one more than
    the last when there is none. Asks for one record in each halving. Where the server tells no times it is the first
    of all. Raises BusError."""
    state = await bus.stream_state(streams.AUD)
    low, high = max(1, state.first_seq), state.last_seq + 1
    while low < high:
        middle = (low + high) // 2
        found = await bus.replay(streams.AUD, subjects.ALL_AUDITS, from_seq=middle, limit=1)
        if found and 0 < found[0].stored_ms < from_ms:
            low = found[0].seq + 1
        else:
            high = middle
    return low
