"""Streams and durables as a bus is asked to have them, and what becomes of a stream that it has already."""

from collections.abc import Mapping
from typing import Any

import msgspec


class Stream(msgspec.Struct, frozen=True, kw_only=True):
    """One stream: the server's JSON configuration, with its name taken out for lookup."""

    name: str
    config: dict[str, Any]


class Durable(msgspec.Struct, frozen=True, kw_only=True):
    """One durable pull consumer."""

    stream: str
    name: str
    config: dict[str, Any]


class Topology(msgspec.Struct, frozen=True, kw_only=True):
    streams: tuple[Stream, ...] = ()
    durables: tuple[Durable, ...] = ()


def changed(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that a stream which exists is changed to: as wanted, but its bound per subject is never
    lowered, which the server would enforce by deleting what it has accepted, and one on disk that is wanted in memory
    (an earlier release made it) stays there: the server never moves a stream."""
    config = {**found, **wanted}
    if found.get("storage") == "file":
        config["storage"] = "file"
    if "max_msgs_per_subject" in wanted:
        bounds = [each.get("max_msgs_per_subject", 0) for each in (found, wanted)]
        if min(bounds) <= 0:
            config |= {"max_msgs_per_subject": -1, "discard_new_per_subject": False}
        else:
            config["max_msgs_per_subject"] = max(bounds)
    return config
