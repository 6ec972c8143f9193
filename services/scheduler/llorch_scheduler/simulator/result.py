"""What a simulation says: plain numbers, rounded, in a fixed order, so that equal runs are equal bytes.

Units are in the names. A percentile is the smallest value that at least that share of the values does not exceed.
"""

import msgspec


class Quantiles(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds; zeros when there is no value."""

    p50: float
    p95: float
    p99: float
    mean: float
    most: float


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Tasks of one class, or of one tenant and class."""

    name: str
    priority: str
    arrived: int
    started: int
    done: int
    expired: int
    failed: int
    gave_up: int
    """Clients whose patience ended before they were admitted."""
    too_long: int
    """Refused at once: prompt and answer exceed the pool's context."""
    unfinished: int
    wait_ms: Quantiles
    """From admission to the engine."""
    to_start_ms: Quantiles
    """From the first try to the engine, with the waits of refused tries."""
    tokens_per_s: float


class PoolResult(msgspec.Struct, frozen=True, kw_only=True):
    pool_id: str
    replicas: int
    slots: int
    utilisation: float
    """Busy slot time by ready slot time, from the first arrival on."""
    tokens_per_s: float
    queue_peak: dict[str, int]
    refusals: dict[str, int]
    """Refused tries by reason."""


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """predicted_start_ms as told at admission against the wait that came of it, over the tasks that were told, or
    had, a wait of a second or more."""

    tasks: int
    error_median_ms: float
    error_median_ratio: float
    """Of |told - waited| / waited."""
    within_20_percent: float


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """Over time; `at_s` are the ends of the intervals, and each value is of its interval."""

    at_s: tuple[float, ...]
    wait_p50_s: dict[str, tuple[float | None, ...]]
    """By class, of the tasks that started in the interval; None when none did."""
    wait_p95_s: dict[str, tuple[float | None, ...]]
    queued: dict[str, tuple[float, ...]]
    """By class, all pools together, mean."""
    utilisation: dict[str, tuple[float | None, ...]]
    """By pool, mean; None while no slot was ready."""
    refused_per_s: tuple[float, ...]


class Result(msgspec.Struct, frozen=True, kw_only=True):
    scenario: str
    about: str
    seed: int
    scale: float
    partial: bool
    """Stopped before every task had ended."""
    simulated_s: float
    tasks: int
    arrived: int
    outcomes: dict[str, int]
    """How the arrived tasks ended; `unfinished` are those that had not. They add up to `arrived`."""
    refusals: int
    """Refused tries; one task may try several times."""
    came_back: int
    """Tries made when a refusal had told the client to."""
    came_back_admitted: int
    requeues: dict[str, int]
    tokens_per_s: float
    utilisation: float
    prediction: Prediction
    classes: tuple[Group, ...]
    tenants: tuple[Group, ...]
    pools: tuple[PoolResult, ...]
    series: Series


def encode(result: Result) -> bytes:
    """The JSON document, byte for byte equal for equal runs."""
    return msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n"
