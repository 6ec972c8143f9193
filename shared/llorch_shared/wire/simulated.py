"""What the simulator says, in files and to orchctl, which runs it: plain numbers, rounded, in a fixed order, so that
equal runs are equal bytes.

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
    dropped: int
    """Admitted, and ended in favour of others: evicted from a full queue, or no longer able to be in time."""
    infeasible: int
    """Refused for good: their deadline could not be met."""
    sent_away: int
    """Refused at least once; most come back as they are told."""
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
    due: int
    """Admitted tasks that ended and were not cancelled …"""
    met: float
    """… and the part of them that was done within its deadline."""
    preempted: int
    """Attempts that were stopped for more urgent work."""


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
    starts: dict[str, int]
    """Attempts by engine version."""


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """predicted_start_ms as told at admission against the wait that came of it, over the tasks that were told, or
    had, a wait of a second or more."""

    tasks: int
    error_median_ms: float
    error_median_ratio: float
    """Of |told - waited| / waited."""
    within_20_percent: float


class Returns(msgspec.Struct, frozen=True, kw_only=True):
    """Tries that clients made when a refusal had told them to."""

    tries: int
    admitted: int
    promised: int
    """Those for which a place was to be kept …"""
    promised_admitted: int
    """… and was."""


class Tenth(msgspec.Struct, frozen=True, kw_only=True):
    """Tasks that were told a chance to be on time within one tenth of the scale."""

    tasks: int
    told: float
    """Mean of what they were told."""
    real: float
    """Part of them that was on time."""


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """Ten tenths each, the lowest first; empty when nobody was told a chance."""

    at_admission: tuple[Tenth, ...]
    at_placement: tuple[Tenth, ...]


class Fairness(msgspec.Struct, frozen=True, kw_only=True):
    """One class, judged over minutes; None where no minute had two tenants to judge."""

    priority: str
    jain_mean: float | None
    jain_least: float | None
    """Of the worst minute."""
    share_deviation: float
    """Largest |used - ideal| of a tenant over the whole run, as a part of all slot time that was used."""


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
    met: dict[str, tuple[float | None, ...]]
    """By class, part of the admitted tasks that ended in the interval which was done within its deadline."""
    tenant_wait_p95_s: dict[str, tuple[float | None, ...]]
    """By tenant and class, of those with the most tasks."""


class ShareSeries(msgspec.Struct, frozen=True, kw_only=True):
    """Parts of the used slot time over time, by pool, tenant and class, of those that used most."""

    at_s: tuple[float, ...]
    """Ends of the windows."""
    used: dict[str, tuple[float, ...]]
    ideal: dict[str, tuple[float, ...]]
    """What weighted max-min fairness would have given them."""
    jain: dict[str, tuple[float | None, ...]]
    """By class, over the minute that ends here."""


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
    returns: Returns
    requeues: dict[str, int]
    tokens_per_s: float
    utilisation: float
    preemptions: int
    prediction: Prediction
    calibration: Calibration
    fairness: tuple[Fairness, ...]
    classes: tuple[Group, ...]
    tenants: tuple[Group, ...]
    pools: tuple[PoolResult, ...]
    series: Series
    shares: ShareSeries


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """Of one class, or one tenant's tasks in a class, under one policy."""

    wait_p50_ms: float
    wait_p95_ms: float
    done: int
    sent_away: int
    """Refused at least once, with a time to come back."""
    refused: int
    """Sent away for good: infeasible deadlines, and clients whose patience ended."""
    late: int
    """Ended while they waited: expired, or dropped for others."""
    missed: int
    """Admitted and not done within their deadline."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    priority: str
    tasks: int
    recorded: Outcome | None
    present: Outcome
    other: Outcome | None


class Reproduction(msgspec.Struct, frozen=True, kw_only=True):
    """Simulated against recorded waits of the tasks that started in both; ratios of those that waited 0.1 s or more."""

    tasks: int
    error_median_ms: float
    error_median_ratio: float
    recorded_mean_ms: float
    simulated_mean_ms: float


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    about: str
    partial: bool
    left_out: dict[str, int]
    """Recorded tasks that could not be replayed, by reason."""
    reproduction: Reproduction | None
    rows: tuple[Row, ...]
    present: Result
    other: Result | None


class SimulatorProgress(msgspec.Struct, frozen=True, kw_only=True):
    """One line on standard error with `--progress json`."""

    tasks: int
    ended: int
    simulated_s: float
    wall_s: float
    tasks_per_s: float
    compiled: bool = False
    """The core is a compiled one: the same decisions in half the time."""


def encode(result: Result) -> bytes:
    """The JSON document, byte for byte equal for equal runs."""
    return msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n"
