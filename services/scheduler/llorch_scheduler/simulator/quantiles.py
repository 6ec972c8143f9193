"""Percentiles by nearest rank: always a value that occurred, never one in between."""

from collections.abc import Sequence


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest of the values, given in rising order, that at least `share` of them do not exceed; 0 for none."""
    if not ordered:
        return 0.0
    rank = -(-len(ordered) * round(1000 * share) // 1000)
    return ordered[max(0, rank - 1)]
