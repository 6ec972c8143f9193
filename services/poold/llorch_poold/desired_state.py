"""What is wanted of this node, as the bucket of specifications has it. A value that cannot be read counts as absent."""

import logging
from typing import TypeVar

import msgspec

from llorch_shared import subjects
from llorch_shared.live_table import LiveTable
from llorch_shared.logs import narrate
from llorch_shared.readable import UNREADABLE, readable
from llorch_shared.wire.desired import DRAIN_DECODER, RELOAD_DECODER, PoolDrain, PoolReload
from llorch_shared.wire.session import SESSIONS_SPEC_DECODER, SessionsSpec
from llorch_shared.wire.spec import POOL_DECODER, PoolSpec

log = logging.getLogger(__name__)

T = TypeVar("T")


def pools(specs: LiveTable) -> dict[str, PoolSpec]:
    return _by_pool(specs, "pool", POOL_DECODER)


def drains(specs: LiveTable) -> dict[str, PoolDrain]:
    return _by_pool(specs, "drain", DRAIN_DECODER)


def reloads(specs: LiveTable) -> dict[str, PoolReload]:
    return _by_pool(specs, "reload", RELOAD_DECODER)


def session_policies(specs: LiveTable) -> SessionsSpec:
    value = specs.values.get(subjects.SESSION_POLICY_KEY)
    spec = readable(SESSIONS_SPEC_DECODER, value, "the policy of sessions") if value is not None else None
    return spec or SessionsSpec()


def _by_pool(specs: LiveTable, kind: str, decoder: "msgspec.json.Decoder[T]") -> dict[str, T]:
    found: dict[str, T] = {}
    for key, value in specs.values.items():
        if key.startswith(f"{kind}."):
            try:
                found[key.partition(".")[2]] = decoder.decode(value)
            except UNREADABLE as error:
                _tell_unreadable(key, error)
    return found


def _tell_unreadable(key: str, error: Exception) -> None:
    narrate(
        log,
        f"the specification {key} cannot be read and is ignored: {error}",
        actor="poold",
        action="spec.unreadable",
        target=key,
        level=logging.ERROR,
    )
