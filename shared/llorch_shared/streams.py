"""Streams, buckets and durables as data. The bus ensures them from this raw JSON at start and after every reconnect.

Raw, because the client library drops fields it does not know and an update made through it would reset them. Durations
are nanoseconds, as the server wants them.
"""

from typing import Any, Final

from llorch_shared import subjects
from llorch_shared.bus.topology import Durable, Stream, Topology
from llorch_shared.pool_policy import server_capacity
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Priority

_SECOND: Final = 1_000_000_000
_MIB: Final = 1024 * 1024

RUN: Final = "RUN"
PLC: Final = "PLC"
TOK: Final = "TOK"
AUD: Final = "AUD"
DEAD: Final = "DEAD"
REG: Final = "KV_REG"
SPEC: Final = "KV_SPEC"
SES: Final = "KV_SES"
CATALOG: Final = "KV_CAT"
OBJECTS: Final = "OBJ_ART"
ARTIFACTS: Final = "ART"

PLACEMENTS_PER_REPLICA_MAX: Final = 4096
PLACEMENT_TTL_S: Final = 3600
"""An unclaimed placement is taken back within a minute; what lies for a replica that never returns goes away."""
REGISTRY_TTL_S: Final = 3
REGISTRY_RENEW_S: Final = 1.0
VERSIONS: Final = 16
"""Of each key of what is wanted, kept to go back to and to compare."""
SESSION_KEPT_S: Final = 72 * 3600
"""How long the id of a session that has ended is remembered: as long as that of a task."""
SESSION_DELETED_S: Final = 600
"""How much longer than the session would have lasted the deletion of one without an account is kept: a task of it may
have run for so long."""
DEDUPE_WINDOW_S: Final = 600
OBJECT_TTL_S: Final = 7 * 24 * 3600
"""Prompts must outlast their tasks, which may wait for days; artifacts are to be fetched within the week."""
DEAD_DEDUPE_WINDOW_S: Final = 24 * 3600
"""Letters are few, and whoever repeats one may be a scheduler that was away for a night."""


def _stream(name: str, subject_list: list[str], **settings: Any) -> Stream:
    return Stream(name=name, config={"name": name, "subjects": subject_list, "num_replicas": 1, **settings})


def base(*, token_bytes_max: int = 256 * _MIB, replicas: int = 1) -> Topology:
    """The streams that exist in every deployment."""
    streams = (*_of_tasks(token_bytes_max), *_of_records(), *_of_objects(), *_buckets())
    return Topology(streams=tuple(_replicated(stream, replicas) for stream in streams))


def _of_tasks(token_bytes_max: int) -> tuple[Stream, ...]:
    """What is true of a task, where it is to run, and its tokens."""
    return (
        _stream(
            RUN,
            [subjects.ALL_RUNS, subjects.ALL_CANCELS],
            retention="limits",
            storage="file",
            discard="old",
            max_msgs_per_subject=1,
            max_age=72 * 3600 * _SECOND,
            max_bytes=2048 * _MIB,
            allow_direct=True,
            republish={"src": subjects.ALL_RUNS, "dest": subjects.ALL_RUNS_REPUBLISHED},
        ),
        _stream(
            PLC,
            [subjects.ALL_PLACEMENTS],
            retention="workqueue",
            storage="memory",
            discard="new",
            max_msgs_per_subject=PLACEMENTS_PER_REPLICA_MAX,
            discard_new_per_subject=True,
            max_age=PLACEMENT_TTL_S * _SECOND,
            duplicate_window=DEDUPE_WINDOW_S * _SECOND,
            max_bytes=256 * _MIB,
            allow_direct=True,
        ),
        _stream(
            TOK,
            [subjects.ALL_TOKENS],
            retention="limits",
            storage="memory",
            discard="old",
            max_age=2 * 3600 * _SECOND,
            max_bytes=token_bytes_max,
            no_ack=True,
            allow_direct=True,
        ),
    )


def _of_records() -> tuple[Stream, ...]:
    """What people read later."""
    return (
        _stream(
            AUD,
            [subjects.ALL_AUDITS],
            retention="limits",
            storage="file",
            discard="old",
            compression="s2",
            max_age=30 * 24 * 3600 * _SECOND,
            max_bytes=4096 * _MIB,
            deny_delete=True,
            deny_purge=True,
            allow_atomic=True,
            allow_direct=True,
        ),
        _stream(
            DEAD,
            [subjects.ALL_DEAD_LETTERS],
            retention="limits",
            storage="file",
            discard="old",
            max_age=14 * 24 * 3600 * _SECOND,
            max_bytes=256 * _MIB,
            duplicate_window=DEAD_DEDUPE_WINDOW_S * _SECOND,
            allow_direct=True,
        ),
    )


def _of_objects() -> tuple[Stream, ...]:
    return (
        _stream(
            OBJECTS,
            [subjects.ALL_OBJECT_CHUNKS, subjects.ALL_OBJECT_ENTRIES],
            retention="limits",
            storage="file",
            discard="new",
            max_age=OBJECT_TTL_S * _SECOND,
            max_bytes=1024 * _MIB,
            duplicate_window=DEDUPE_WINDOW_S * _SECOND,
            allow_rollup_hdrs=True,
            allow_direct=True,
        ),
        _stream(
            ARTIFACTS,
            [subjects.ALL_ARTIFACTS],
            retention="limits",
            storage="file",
            discard="old",
            max_msgs_per_subject=1,
            max_age=OBJECT_TTL_S * _SECOND,
            max_bytes=64 * _MIB,
            allow_direct=True,
        ),
    )


def _buckets() -> tuple[Stream, ...]:
    return (
        _bucket("REG", history=1, max_bytes=64 * _MIB, live=subjects.ALL_REGISTRY_LIVE),
        _bucket("SPEC", history=VERSIONS, max_bytes=64 * _MIB, live=subjects.ALL_SPEC_LIVE),
        _bucket("SES", history=1, max_bytes=256 * _MIB, live=subjects.ALL_SESSIONS_REPUBLISHED, discard="old"),
        _bucket("CAT", history=VERSIONS, max_bytes=64 * _MIB, live=subjects.ALL_CATALOG_LIVE),
    )


def _replicated(stream: Stream, replicas: int) -> Stream:
    return Stream(name=stream.name, config={**stream.config, "num_replicas": replicas})


def _bucket(name: str, *, history: int, max_bytes: int, live: str, discard: str = "new") -> Stream:
    """`discard` old: what was changed longest ago goes when it is full, instead of what is new being refused."""
    return _stream(
        f"KV_{name}",
        [f"$KV.{name}.>"],
        retention="limits",
        storage="file",
        discard=discard,
        max_msgs_per_subject=history,
        max_bytes=max_bytes,
        deny_delete=True,
        allow_rollup_hdrs=True,
        allow_direct=True,
        allow_msg_ttl=True,
        subject_delete_marker_ttl=_SECOND if name == "REG" else 0,
        republish={"src": f"$KV.{name}.>", "dest": live},
    )


def admission_stream(pool: str, priority: Priority) -> str:
    return f"ADM_{pool}_{priority}"


def placement_durable(pool: str, replica: str) -> str:
    return f"{pool}_{replica}"


SCHEDULER_DURABLE: Final = "sched"


def admission(pool: PoolSpec, *, replicas: int = 1) -> Topology:
    """The queues of one pool: the server itself refuses what is over capacity, of the class and of one tenant.

    A tenant's bound is set when the queue is made and only ever raised there (`changed`): the server enforces a lowered
    `max_msgs_per_subject` by deleting messages, while a lowered `max_msgs` keeps what was accepted and only refuses
    more. The scheduler itself keeps a lowered bound. The server reserves `max_bytes`: no more of it than a queue of the
    largest messages (1 MiB) needs, so that many pools fit.
    """
    tenant_capacity = pool.queue.tenant_capacity
    bounds = {"max_msgs_per_subject": tenant_capacity or -1, "discard_new_per_subject": tenant_capacity is not None}
    names = {priority: admission_stream(pool.id, priority) for priority in Priority}
    return Topology(
        streams=tuple(
            _stream(
                name,
                [subjects.admission_filter(pool.id, priority)],
                num_replicas=replicas,
                retention="workqueue",
                storage="file",
                discard="new",
                max_msgs=server_capacity(pool, priority),
                max_bytes=min(2048, server_capacity(pool, priority) + 1) * _MIB,
                duplicate_window=DEDUPE_WINDOW_S * _SECOND,
                allow_direct=True,
                **bounds,
            )
            for priority, name in names.items()
        ),
        durables=tuple(
            _durable(name, SCHEDULER_DURABLE, subjects.admission_filter(pool.id, priority))
            for priority, name in names.items()
        ),
    )


def placements(pool: str, replica: str) -> Topology:
    """The durable from which one replica takes its placements."""
    return Topology(durables=(_durable(PLC, placement_durable(pool, replica), subjects.placement(pool, replica)),))


def _durable(stream: str, name: str, filter_subject: str) -> Durable:
    return Durable(
        stream=stream,
        name=name,
        config={
            "durable_name": name,
            "filter_subject": filter_subject,
            "ack_policy": "explicit",
            "ack_wait": 3600 * _SECOND,
            "max_ack_pending": -1,
            "max_deliver": -1,
        },
    )
