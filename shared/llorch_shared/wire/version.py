"""Which version of our messages a message speaks, and the one way to read one that others wrote.

The header `Llorch-Version` names it; a message without one is version 1, so that plain JSON from any bus client is a
whole message. Each kind has its own number, because each has its own readers: a new field with a default in a type
that ignores unknown fields needs no new number, anything that an old reader would misread does. TaskRequest refuses
unknown fields, so any new field of it is a new version of admissions, run records and placements.

A message is written with the oldest version that can say it: a request without the new fields is still version 1, so
that new gateways, schedulers and nodes work beside old ones, and only what uses a new field waits for new readers.
Readers read every version up to theirs.

    admission, placement, run   2: TaskRequest.failover
                                3: TaskRequest.messages, sampling, response_schema
                                4: TaskRequest.payload_ref, trace, tools and what goes with them, top_logprobs
                                5: TaskRequest.override
    spec                        2: PoolSpec.workloads, pooling
                                3: ProvisioningSpec.source, container, binary, ports

A newer version is never half understood: `decode` does not look at the payload. What a reader does then is its own
decision, and stands beside it: work in a queue becomes a dead letter, state is passed over. A cancel wish has no
version: its subject alone is the wish. Tokens have none either: their frames are the server-sent events that clients
read, whose names and fields are part of the HTTP contract.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, TypeVar

import msgspec
from msgspec import UNSET

from llorch_shared.readable import UNREADABLE
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import ChatRole, Failover, TaskRequest

VERSION_HEADER: Final = "Llorch-Version"

T = TypeVar("T")


class Kind(StrEnum):
    ADMISSION = "admission"
    PLACEMENT = "placement"
    RUN = "run"
    REGISTRY = "registry"
    SPEC = "spec"


VERSIONS: Final[dict[Kind, int]] = {
    **dict.fromkeys(Kind, 1),
    **dict.fromkeys((Kind.ADMISSION, Kind.PLACEMENT, Kind.RUN), 5),
    Kind.SPEC: 3,
}
"""Newest version of each kind that this release writes and reads."""


class Unreadable(msgspec.DecodeError):
    """Garbage: no release can read it."""


class NewerVersion(Unreadable):
    """Written by a newer release; its payload was not looked at."""


def version_headers(kind: Kind, request: TaskRequest | None = None) -> dict[str, str]:
    """What a publisher says about a message of this kind. `request`: the one that the message carries, if it does."""
    return {VERSION_HEADER: "1" if request is None else _version_of(request)}


def spec_headers(value: object) -> dict[str, str]:
    """Of a specification: a pool, or any other desired state."""
    if not isinstance(value, PoolSpec):
        return {VERSION_HEADER: "1"}
    if value.provisioning.is_new:
        return {VERSION_HEADER: "3"}
    return {VERSION_HEADER: "1" if value.workloads is UNSET and value.pooling is UNSET else "2"}


def _version_of(request: TaskRequest) -> str:
    if request.override:
        return "5"
    if request.payload_ref is not None or request.trace or request.top_logprobs is not None:
        return "4"
    if request.tools or _tells_of_tools(request):
        return "4"
    if request.messages is not None or request.sampling is not None or request.response_schema is not None:
        return "3"
    return "1" if request.failover is Failover.RESUME else "2"


def _tells_of_tools(request: TaskRequest) -> bool:
    return any(message.role is ChatRole.TOOL or message.tool_calls for message in request.messages or ())


def check_version(kind: Kind, headers: Mapping[str, str]) -> None:
    """Raises NewerVersion, and Unreadable where the header is no version at all."""
    text = headers.get(VERSION_HEADER, "1")
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) >= 1):
        raise Unreadable(f"{VERSION_HEADER} is {text[:40]!r}, not a version")
    if int(text) > VERSIONS[kind]:
        raise NewerVersion(f"{kind} of version {text}; this release reads up to {VERSIONS[kind]}")


def is_newer(kind: Kind, headers: Mapping[str, str]) -> bool:
    """Whether a newer release wrote it."""
    try:
        check_version(kind, headers)
    except NewerVersion:
        return True
    except Unreadable:
        return False
    return False


def decode(kind: Kind, decoder: msgspec.json.Decoder[T], data: bytes, headers: Mapping[str, str]) -> T:
    """The message, if it is of a version that is known. Raises Unreadable, whatever the payload is made of: invalid
    UTF-8 and too deep a nesting are no DecodeError of the library's."""
    check_version(kind, headers)
    try:
        return decoder.decode(data)
    except UNREADABLE as error:
        raise Unreadable(str(error)) from error
