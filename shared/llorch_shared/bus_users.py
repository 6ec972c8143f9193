"""Who may say and hear what on the bus: one user per service, per node and per tenant, each with what it needs.

Derived from `subject_table` (who publishes, who reads) and from what the bus adapter asks of JetStream for it. A node's
users are narrowed to their node wherever a subject names one. `orchctl` is the operator and may do everything.

What subjects cannot limit, and so nobody should expect of these users:

- A task's run record, tokens and audit are named by the task, not by the node: a node may write those of any task. The
  compare-and-set on the run record and the hash chains of the audit are what stands against that.
- A placement's durable is one word, so a node may take placements of another. It then still has to claim the tasks.
- A tenant's queue takes a task as its user wrote it. What is stored has no header of whose account published it, so
  its subject says that: the import of the tenant's account puts the account there, and the scheduler judges the task.
  Its message id is its user's choice, too, so a gateway does not believe that a message with a task's id is that task.
- The body of a JetStream request is not looked at: who may read a stream may read all of it, and a consumer that is
  made for reading may be given any subject to deliver to.
- **An answer goes where the question says**, and the permission counts for the question only. With the right to ask
  JetStream anything, a stolen seed can have an answer delivered to any subject of this account: as a key of another
  node, or as a request that deletes a stream (measured with nats-server 2.15.1). These users keep mistakes, and what
  merely listens, apart. A machine that is not trusted needs an account of its own, as tenants have: answers to it never
  leave that.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import msgspec

from llorch_shared import streams, subjects
from llorch_shared.bus_accounts import account_of
from llorch_shared.identifiers import token
from llorch_shared.subject_table import SUBJECTS, Delivery, Subject

API: Final = "$JS.API."
EVERYTHING: Final = ">"
OPERATOR: Final = "orchctl"
ON_NODES: Final = ("poold", "provisioner")
SINGLE: Final = ("gateway", "scheduler", "auditor")
TENANTS: Final = "bus client"
SERVER: Final = "nats-server"
_OF_TENANT: Final = "tenant-"

_BASE: Final = streams.base().streams
_HEARD: Final = (Delivery.SIGNAL, Delivery.REQUEST)
"""Read by subscription; everything else out of its stream."""
_ALSO_HEARD: Final = {(role, subjects.TOKENS) for role in ("gateway", TENANTS)}

_KEYS: Final = {
    ("poold", subjects.REGISTRY): ("node.{node}", "replica.{node}.*"),
    ("scheduler", subjects.REGISTRY): ("lease.scheduler.*", "floor.run.*", "scheduler.*"),
    ("poold", subjects.SPEC): ("pool.*", "reload.*"),
    ("scheduler", subjects.SPEC): ("drain.*",),
    ("provisioner", subjects.CATALOG): ("model.*",),
}
"""Keys of a bucket that a role writes, where these are not all."""

_OF_SEVERAL_WORDS: Final = ("{key}", "{chunks}")

_ENSURES: Final = ("gateway", "scheduler", "poold")
"""Look at every stream when they connect."""
_JETSTREAM: Final = {
    # A missing stream may be made by who is left when the server that had it in memory comes back; none is changed.
    "gateway": (
        *(f"STREAM.CREATE.{stream.name}" for stream in _BASE),
        *(f"CONSUMER.{verb}.{streams.TOK}.*" for verb in ("CREATE", "MSG.NEXT", "DELETE")),
        f"STREAM.MSG.DELETE.{streams.OBJECTS}",
    ),
    "scheduler": (
        "STREAM.CREATE.*",
        "STREAM.UPDATE.*",
        *(f"CONSUMER.{verb}.*.{streams.SCHEDULER_DURABLE}" for verb in ("INFO", "CREATE", "MSG.NEXT", "RESET")),
        f"STREAM.MSG.DELETE.{streams.OBJECTS}",
    ),
    "poold": (
        *(f"CONSUMER.{verb}.{streams.PLC}.*" for verb in ("INFO", "CREATE", "MSG.NEXT", "RESET")),
        *(f"CONSUMER.{verb}.{streams.TOK}.*" for verb in ("CREATE", "MSG.NEXT", "DELETE")),
        f"STREAM.MSG.DELETE.{streams.OBJECTS}",
    ),
}
_ACKS: Final = {
    "scheduler": f"$JS.ACK.*.{streams.SCHEDULER_DURABLE}.>",
    "poold": f"$JS.ACK.{streams.PLC}.*.>",
}


class User(msgspec.Struct, frozen=True, kw_only=True):
    """`name` names its files. A tenant's user has its account instead of permissions."""

    name: str
    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()
    answers: bool = False
    """Whether it may publish to whatever subject a request asks to be answered on."""
    tenant: str = ""


class Import(NamedTuple):
    """`exported`: the subject in the services' account. `local`: the same as the tenant's account names it."""

    exported: str
    local: str


def services(nodes: Sequence[str]) -> tuple[User, ...]:
    """Raises ValueError for a node that is no name."""
    users = [user(role) for role in SINGLE]
    users += [user(role, token(node)) for node in nodes for role in ON_NODES]
    return (User(name=OPERATOR, publish=(EVERYTHING,), subscribe=(EVERYTHING,)), *users)


def tenants(names: Sequence[str]) -> tuple[User, ...]:
    """Raises ValueError for a tenant that cannot have an account."""
    return tuple(User(name=_OF_TENANT + name, tenant=name) for name in names if account_of(name))


def owners(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """The nodes and the tenants whose users these are, sorted. One of a node's users is enough."""
    mine = list(names)
    nodes = {name.removeprefix(f"{role}-") for role in ON_NODES for name in mine if name.startswith(f"{role}-")}
    return sorted(nodes), sorted(name.removeprefix(_OF_TENANT) for name in mine if name.startswith(_OF_TENANT))


def user(role: str, node: str = "") -> User:
    """Of a service, or of a service on a node."""
    inbox = f"_INBOX_{role}.{token(node)}.>" if node else f"_INBOX_{role}.>"
    heard = [_filled(row.pattern, node) for row in SUBJECTS if role in row.consumers and _by_subscription(role, row)]
    answers = any(role in row.consumers and row.delivery is Delivery.REQUEST for row in SUBJECTS)
    if role == "gateway":
        heard += [subjects.ALL_API, "$SRV.>"]
        answers = True
    return User(
        name=f"{role}-{node}" if node else role,
        publish=_least({*_published(role, node), *_asked(role)}),
        subscribe=_least({inbox, *heard}),
        answers=answers,
    )


def tenant_services(tenant: str) -> tuple[Import, ...]:
    """What a tenant's account may ask or publish, and be answered: the operations, and its own queues."""
    own = Import(subjects.own_admissions_of(tenant), subjects.admissions_of(tenant))
    return Import(subjects.ALL_API, subjects.ALL_API), own


def tenant_streams(tenant: str) -> tuple[Import, ...]:
    """What a tenant's account may hear: the tokens of its own tasks."""
    lane = subjects.tokens_of_lane(subjects.bus_lane(tenant))
    return (Import(lane, lane),)


def _by_subscription(role: str, row: Subject) -> bool:
    return row.delivery in _HEARD or (role, row.pattern) in _ALSO_HEARD


def _published(role: str, node: str) -> Iterator[str]:
    for row in SUBJECTS:
        if role in row.publishers:
            keys = _KEYS.get((role, row.pattern))
            for pattern in (row.pattern.replace("{key}", key) for key in keys) if keys else (row.pattern,):
                yield _filled(pattern, node)
    if role in _ACKS:
        yield _ACKS[role]


def _asked(role: str) -> Iterator[str]:
    """Of JetStream."""
    readable = sorted({name for row in SUBJECTS if role in row.consumers for name in _streams_of(role, row)})
    for name in readable:
        yield f"{API}DIRECT.GET.{name}"
        yield f"{API}DIRECT.GET.{name}.>"
        yield f"{API}STREAM.MSG.GET.{name}"
        yield f"{API}STREAM.INFO.{name}"
    if role in _ENSURES:
        yield f"{API}STREAM.INFO.*"
    for call in _JETSTREAM.get(role, ()):
        yield API + call


def _streams_of(role: str, row: Subject) -> Iterator[str]:
    """The streams a row is read from. Queues of pools are of any name, and come and go."""
    if row.delivery in _HEARD or row.pattern == subjects.PLACEMENT:
        return
    if row.pattern == subjects.ADMISSION:
        yield "*"
    else:
        wanted = _filled(row.pattern, "").split(".")
        for stream in _BASE:
            if any(_covers(each.split("."), wanted) for each in stream.config["subjects"]):
                yield stream.name


def _least(filters: set[str]) -> tuple[str, ...]:
    """Without those that another one covers."""
    split = {each: each.split(".") for each in filters}
    covered = (
        each for each in filters for other in filters - {each} if _covers(split[other], split[each]) and ">" not in each
    )
    return tuple(sorted(filters.difference(covered)))


def _covers(filter_tokens: list[str], wanted: list[str]) -> bool:
    for index, part in enumerate(filter_tokens):
        if part == ">":
            return len(wanted) > index
        if index >= len(wanted) or part not in ("*", wanted[index]):
            return False
    return len(filter_tokens) == len(wanted)


def _filled(pattern: str, node: str) -> str:
    """A pattern as a filter: its node's own name where there is one, else any."""
    parts = []
    for part in pattern.split("."):
        if part == "{node}" and node:
            parts.append(token(node))
        elif part in _OF_SEVERAL_WORDS:
            parts.append(">")
        else:
            parts.append("*" if part.startswith("{") else part)
    return ".".join(parts)
