"""The system that is to be broken: how many processes, which engines. Data; `run` sets it up."""

import msgspec

from chaos.plan import Shape


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """By default what chaos runs on: 16 slots at 50 tokens a second serve three times its load of 6 tasks a second."""

    shape: Shape = Shape()
    slots: int = 4
    """Of every replica; each pool has one on every node."""
    rate: float = 50.0
    """Tokens per second of each stream; 0 is as fast as an engine can."""
    capacity: int = 256
    """Places in each queue."""
    servers: int = 1
    """Of the bus; three keep every stream together, and may be cut off from each other."""
    real: bool = False
    """A real engine and a real model instead of mocks; slots and rate are its own."""
    patience_s: float = 60.0
    """How long clients go on after the last ask."""
