"""Frames of a token stream: server-sent events, encoded once by the node and relayed as bytes.

    event: started\\ndata: {…}\\n\\n                        no id: a reader that has only this starts anew
    id: <attempt>-<i>\\nevent: token\\ndata: {"t":…,"i":…}\\n\\n    behind `i`: tool_calls, logprobs
    event: metrics\\ndata: {…}\\n\\n                        no id
    id: <attempt>-<tokens_out>\\nevent: end\\ndata: {…}\\n\\n    (or `error`)
    event: narration\\ndata: {…}\\n\\n                      no id; made by a gateway for one reader, never on the bus

One bus message holds either one `started`, one `metrics`, one `end` or `error`, or one or more `token` events with
consecutive indices. JSON escapes line breaks, so `\\nid: ` in a message is always the start of an event: the first
and last index of a message are found by two byte searches, without decoding it.
"""

from enum import IntEnum
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta

from llorch_shared.errors import ErrorBody
from llorch_shared.wire.run import WaitsFor
from llorch_shared.wire.task import Engine

STORED_CURSOR_PATTERN: Final = r"^[0-9a-f]{8}\.[0-9]{1,18}$(?!\n)"
"""Which life of the token log, and a sequence in it."""
MESSAGE_BYTES_MAX: Final = 512 * 1024
"""Joined frames stay well under the server's 1 MiB payload limit, which cuts the connection."""


class Started(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The engine has taken the task (OC-CTRL-2021)."""

    queue_position: int
    predicted_start_ms: int
    engine: Engine | None = None
    engine_version: str = ""
    pool_id: str = ""
    replica_id: str = ""
    node_id: str = ""
    device: str = ""
    """`cpu` in the marked carve-out, else the device mask, for example `cuda:0`."""
    model_digest: str = ""
    sampler_profile_version: str = ""
    seed: int | None = None
    attempt: int = 1
    tokens_in: int | None = None


class FunctionDelta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    name: str | None = None
    arguments: str = ""
    """The next piece of the arguments' JSON text."""


class ToolCallDelta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A piece of a tool call. The first one of a call has its `id` and its function's name."""

    index: int
    """Of the call among those of the answer."""
    id: str | None = None
    type: str | None = None
    function: FunctionDelta = FunctionDelta()


class Logprob(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(Logprob, frozen=True, kw_only=True, gc=False):
    top_logprobs: tuple[Logprob, ...] = ()
    """The likeliest tokens in its place, as many as were asked for."""


class Token(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    t: str
    i: int
    tool_calls: tuple[ToolCallDelta, ...] = ()
    """Of tasks with tools: what the token adds to the calls."""
    logprobs: TokenLogprob | None = None
    """Of tasks that ask for them. A token that is sent with the text of a later one has none."""


class Metrics(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Additive facts during a stream; dropped first when a reader is slow."""

    queue_depth: int | None = None
    on_time_probability: float | None = None
    kv_warmth: bool | None = None
    kv_migrated: bool | None = None
    attempt: int | None = None
    latency_first_token_ms: int | None = None
    tokens_out: int | None = None
    """Tokens that the stream has. Of an attempt that repeats them, they are compared and not sent again."""
    preempted: bool | None = None
    """True: the engine stopped for more urgent work, and the stream goes on later from `resume_from`."""
    resume_from: int | None = None
    """The resumable state: index of the next token this stream will carry (ORCH-3086)."""
    tokens_budget_remaining: int | None = None
    """Of the session, after what is reserved for this task; with the next two (ORCH-3100)."""
    time_budget_remaining_ms: int | None = None
    cost_budget_remaining: float | None = None
    restarted_at: int | None = None
    """The output began anew: every token before this index is void, in all of the stream."""
    queue_position: int | None = None
    """While the task waits, as the next three: tasks that start before it."""
    predicted_start_ms: int | None = None
    """Milliseconds from now."""
    waits_for: WaitsFor | None = None
    progress_percent: int | None = None
    """Of a download, while its size is known."""


class Narration(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A breadcrumb for people while a task waits (draft, off with `gateway.sse_logs_enabled`). Never one per token."""

    human: str
    """At most 100 characters, present tense."""
    actor: str = "gateway"
    action: str = ""


class End(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    tokens_out: int
    decode_ms: int
    decode_time_ms: int
    """Same as decode_ms; both are sent while clients migrate (ORCH-3310)."""
    finish_reason: str
    """`stop`, `length`, `tool_calls`, `cancelled`, or `budget` where the session's was used up."""
    stop_sequence: str | None = None
    """The stop word that ended the text, where one did and the engine tells which."""
    cancel_ms: int | None = None
    """Of a cancelled task: from its stored wish until no engine worked for it (the slot is free)."""
    tokens_in: int | None = None
    latency_first_token_ms: int | None = None
    restarted_at: int | None = None
    """The result begins at this index; what was sent before is void. `tokens_out` counts all that was sent."""


class StoredEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One event of a stream, as the token log has it."""

    event: str
    """`started`, `token`, `metrics`, `end` or `error`."""
    data: Annotated[msgspec.Raw, Meta(extra_json_schema={"type": "object"})]
    id: str = ""
    """`<attempt>-<index>` of a token. An index that came before is the same token again, and one of an attempt before
    one that announced itself counts no more."""


class StoredEvents(msgspec.Struct, frozen=True, kw_only=True):
    """GET /v1/tasks/{id}/events: a part of what is stored of a stream, in the order in which it was published."""

    events: tuple[StoredEvent, ...] = ()
    cursor: str
    """Where the next page begins, now or later."""
    more: bool = False
    """Whether more is stored already."""
    end: StoredEvent | None = None
    """The last event of an ended task, as its record tells it, whether or not the log still has its stream."""


_encode = msgspec.json.encode
_ATTEMPT: Final = b'"attempt":'
_RESUME_FROM: Final = b'"resume_from":'
_RESTARTED_AT: Final = b'"restarted_at":'
_TOKENS_OUT: Final = b'"tokens_out":'
_PREEMPTED: Final = b'"preempted":true'


def encode_started(started: Started) -> bytes:
    return b"event: started\ndata: %b\n\n" % _encode(started)


def encode_token(attempt: int, index: int, text: str, more: bytes = b"") -> bytes:
    """`more`: further members of the JSON object, each behind a comma."""
    return b'id: %d-%d\nevent: token\ndata: {"t":%b,"i":%d%b}\n\n' % (attempt, index, _encode(text), index, more)


def encode_metrics(metrics: Metrics) -> bytes:
    return b"event: metrics\ndata: %b\n\n" % _encode(metrics)


def encode_narration(narration: Narration) -> bytes:
    return b"event: narration\ndata: %b\n\n" % _encode(narration)


def encode_end(attempt: int, end: End) -> bytes:
    return b"id: %d-%d\nevent: end\ndata: %b\n\n" % (attempt, end.tokens_out, _encode(end))


def encode_error(attempt: int, tokens_out: int, error: ErrorBody) -> bytes:
    return b"id: %d-%d\nevent: error\ndata: %b\n\n" % (attempt, tokens_out, _encode(error))


class Kind(IntEnum):
    STARTED = 0
    TOKENS = 1
    METRICS = 2
    END = 3
    ERROR = 4


class Header(NamedTuple):
    """What a relay needs to know about one message. `first` and `last` are token indices, -1 where there are none; for
    a terminal event both are the number of tokens of the whole stream."""

    kind: Kind
    attempt: int
    first: int
    last: int


class BadFrame(ValueError):
    """A message on a token subject is not a frame of ours."""


def peek(data: bytes) -> Header:
    """Read the header of one message without decoding its JSON. Cost: two byte searches."""
    if data.startswith(b"id: "):
        line_end = data.find(b"\n", 4)
        attempt, _, first = data[4:line_end].partition(b"-")
        kind = data[line_end + 8 : line_end + 13]
        try:
            if kind == b"token":
                start = data.rfind(b"\nid: ")
                if start < 0:
                    index = int(first)
                    return Header(Kind.TOKENS, int(attempt), index, index)
                stop = data.find(b"\n", start + 5)
                return Header(Kind.TOKENS, int(attempt), int(first), int(data[start + 5 : stop].partition(b"-")[2]))
            if kind.startswith(b"end\n"):
                return Header(Kind.END, int(attempt), int(first), int(first))
            if kind == b"error":
                return Header(Kind.ERROR, int(attempt), int(first), int(first))
        except ValueError as error:
            raise BadFrame(repr(data[:60])) from error
    elif data.startswith(b"event: started\n"):
        return Header(Kind.STARTED, 0, -1, -1)
    elif data.startswith(b"event: metrics\n"):
        return Header(Kind.METRICS, 0, -1, -1)
    raise BadFrame(repr(data[:60]))


def announced_attempt(metrics: bytes) -> int:
    """The attempt that a metrics frame announces; 0 when it announces none. What comes after it from an earlier
    attempt is from a node that has lost the task."""
    return _number(metrics, _ATTEMPT) or 0


def restarted_at(metrics: bytes) -> int | None:
    """The index before which a metrics frame says that everything is void."""
    return _number(metrics, _RESTARTED_AT)


def goes_on_at(metrics: bytes) -> int | None:
    """The index of the first token of the attempt that a metrics frame announces, where it does not repeat what was
    sent: no reader may have a token of an earlier attempt there."""
    if _PREEMPTED in metrics:
        return None
    return _number(metrics, _RESTARTED_AT if _RESTARTED_AT in metrics else _RESUME_FROM)


class Stands(NamedTuple):
    """What an announcement says about the stream before it: it has the tokens before `at`, as far as they count."""

    at: int
    repeats: bool
    """The attempt says every token again that an earlier one said."""


def stands_at(metrics: bytes) -> Stands | None:
    """Where a metrics frame says that its stream stands; None when it does not."""
    if _ATTEMPT not in metrics:
        return None
    for key in (_RESTARTED_AT, _RESUME_FROM, _TOKENS_OUT):
        index = _number(metrics, key)
        if index is not None:
            return Stands(index, key is _TOKENS_OUT)
    return None


def _number(data: bytes, key: bytes) -> int | None:
    start = data.find(key)
    if start < 0:
        return None
    digits = data[start + len(key) : start + len(key) + 9]
    number = digits[: len(digits) - len(digits.lstrip(b"0123456789"))]
    return int(number) if number else None


def tokens_after(data: bytes, index: int) -> bytes:
    """The token events of a message whose index is greater than `index` (the message holds at least one such)."""
    position = 0
    while True:
        dash = data.find(b"-", position)
        if int(data[dash + 1 : data.find(b"\n", dash)]) > index:
            return data[position:]
        position = data.find(b"\nid: ", dash) + 1
        if position == 0:
            return b""


class Event(NamedTuple):
    """One server-sent event, for clients and tests; the relay never makes one."""

    id: str
    event: str
    data: bytes


def split_events(data: bytes) -> list[Event]:
    events = []
    for block in data.split(b"\n\n"):
        fields = {"id": "", "event": "message"}
        payload: list[bytes] = []
        for line in block.split(b"\n"):
            name, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if name == b"data":
                payload.append(value)
            elif name in (b"id", b"event"):
                fields[name.decode()] = value.decode()
        if payload:
            events.append(Event(fields["id"], fields["event"], b"\n".join(payload)))
    return events


class Cursor(NamedTuple):
    """Last-Event-ID: which token a reader has seen last."""

    attempt: int
    token: int


def parse_cursor(text: str) -> Cursor:
    """`<attempt>-<i>` or a bare `<i>`. Raises ValueError."""
    attempt, dash, index = text.rpartition("-")
    if not (index.isascii() and index.isdigit() and len(index) <= 9):
        raise ValueError("expected <attempt>-<index> or <index>")
    if dash and not (attempt.isascii() and attempt.isdigit() and len(attempt) <= 6):
        raise ValueError("expected <attempt>-<index> or <index>")
    return Cursor(int(attempt) if dash else 0, int(index))
