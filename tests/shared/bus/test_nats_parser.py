"""Whatever the socket gives, in whatever pieces: the same messages and control lines as the library's own parser."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nats.errors import ProtocolError
from nats.protocol.parser import Parser

from llorch_shared.bus.nats_parser import FastParser, parse_header

Seen = list[tuple[Any, ...]]


class Client:
    """Records what a parser decides. `foreign` are subscriptions the fast parser does not know."""

    def __init__(self) -> None:
        self.seen: Seen = []
        self.stats = {"in_msgs": 0, "in_bytes": 0}

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, header: bytes | None) -> None:
        self.seen.append(("msg", sid, bytes(subject), bytes(reply), bytes(data), bytes(header or b"")))

    async def _process_err(self, words: str) -> None:
        self.seen.append(("err", words))

    async def _process_ping(self) -> None:
        self.seen.append(("ping",))

    async def _process_pong(self) -> None:
        self.seen.append(("pong",))

    async def _process_info(self, info: dict[str, Any]) -> None:
        self.seen.append(("info", json.dumps(info, sort_keys=True)))


def fast(raw: tuple[int, ...] = (), sinks: tuple[int, ...] = ()) -> tuple[FastParser, Client]:
    client = Client()
    parser = FastParser(client)
    for sid in raw:
        parser.raw[b"%d" % sid] = lambda subject, data, sid=sid: client.seen.append(("raw", sid, subject, data))  # type: ignore[misc]
    for sid in sinks:
        parser.sinks[b"%d" % sid] = lambda subject, reply, data, header, sid=sid: client.seen.append(  # type: ignore[misc]
            ("msg", sid, subject, reply, data, header)
        )
    return parser, client


subject = st.from_regex(rb"[a-zA-Z0-9_$-]{1,8}(\.[a-zA-Z0-9_$-]{1,8}){0,3}", fullmatch=True)
payload = st.one_of(
    st.binary(max_size=80),
    st.sampled_from([b"\r\n", b"MSG a 1 3\r\nabc\r\n", b"PING\r\n", b"\r", b"", b"x" * 5000, b"\n\r\n-ERR 'x'\r\n"]),
)


@st.composite
def frame(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from(["msg", "msg", "msg", "hmsg", "ping", "pong", "ok", "err", "info"]))
    if kind in ("msg", "hmsg"):
        sid, data = draw(st.integers(1, 4)), draw(payload)
        reply = draw(st.one_of(st.just(b""), subject))
        words = [draw(subject), b"%d" % sid, *([reply] if reply else [])]
        if kind == "msg":
            return b"MSG %b %d\r\n%b\r\n" % (b" ".join(words), len(data), data)
        header = b"NATS/1.0%b\r\n%b\r\n" % (draw(st.sampled_from([b"", b" 503", b" 404 No Messages"])), draw(fields))
        return b"HMSG %b %d %d\r\n%b%b\r\n" % (b" ".join(words), len(header), len(header) + len(data), header, data)
    return {
        "ping": b"PING\r\n",
        "pong": b"PONG\r\n",
        "ok": b"+OK\r\n",
        "err": b"-ERR 'Permissions Violation for Publish to \"x\"'\r\n",
        "info": b'INFO {"server_id":"x","connect_urls":["a:1"]}\r\n',
    }[kind]


fields = st.sampled_from([b"", b"A: 1\r\n", b"Nats-Sequence: 12\r\nB:two words\r\n"])


def pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(stream) + 1) for cut in cuts})
    return [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)]


@settings(max_examples=300, deadline=None)
@given(frames=st.lists(frame(), max_size=12), cuts=st.lists(st.integers(0, 100_000), max_size=12))
async def test_any_stream_cut_anywhere_reads_as_the_library_reads_it(frames: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(frames)
    ours, our_client = fast(sinks=(1, 2))
    theirs_client = Client()
    theirs = Parser(theirs_client)
    for piece in pieces(stream, cuts):
        await ours.parse(piece)
    await theirs.parse(stream)
    assert our_client.seen == theirs_client.seen


@settings(max_examples=50, deadline=None)
@given(frames=st.lists(frame(), min_size=1, max_size=5))
async def test_one_byte_at_a_time(frames: list[bytes]) -> None:
    stream = b"".join(frames)[:3000]
    ours, our_client = fast(sinks=(1, 2, 3, 4))
    theirs_client = Client()
    theirs = Parser(theirs_client)
    for at in range(len(stream)):
        await ours.parse(stream[at : at + 1])
    await theirs.parse(stream)
    assert our_client.seen == theirs_client.seen


async def test_the_hot_path_gets_subject_and_payload_only() -> None:
    parser, client = fast(raw=(7,))
    await parser.parse(b"MSG a.b 7 reply.x 2\r\nhi\r\nHMSG a.b 7 12 14\r\nNATS/1.0\r\n\r\nho\r\n")
    assert client.seen == [("raw", 7, b"a.b", b"hi"), ("raw", 7, b"a.b", b"ho")]
    assert client.stats["in_msgs"] == 2


async def test_half_a_frame_of_a_lost_connection_is_forgotten() -> None:
    parser, client = fast(raw=(7,))
    await parser.parse(b"MSG a 7 100\r\nhalf of i")
    parser.reset()
    await parser.parse(b"PING\r\nMSG a 7 2\r\nhi\r\n")
    assert client.seen == [("ping",), ("raw", 7, b"a", b"hi")]


async def test_a_reset_in_the_middle_of_a_read_drops_the_rest_of_it() -> None:
    parser, client = fast(raw=(7,))

    async def reconnects() -> None:
        parser.reset()

    client._process_ping = reconnects  # type: ignore[method-assign]
    await parser.parse(b"MSG a 7 1\r\n1\r\nPING\r\nMSG a 7 1\r\n2\r\n")
    assert client.seen == [("raw", 7, b"a", b"1")]


@pytest.mark.parametrize(
    "nonsense", [b"HELLO\r\n", b"MSG a 7\r\n", b"MSG a 7 b c 5\r\n", b"MSG a 7 x\r\n", b"HMSG a 7 5\r\n", b"-ERR\r\n"]
)
async def test_what_is_not_the_protocol_ends_the_connection(nonsense: bytes) -> None:
    parser, _ = fast(raw=(7,))
    with pytest.raises(ProtocolError):
        await parser.parse(nonsense)


async def test_a_line_without_end_is_not_kept_for_ever() -> None:
    parser, _ = fast()
    for _ in range(32):
        await parser.parse(b"I" * 32768)
    with pytest.raises(ProtocolError):
        await parser.parse(b"I" * 32768)


def test_status_and_headers_of_a_block() -> None:
    assert parse_header(b"NATS/1.0 404 No Messages\r\n\r\n") == (404, "No Messages", {})
    assert parse_header(b"NATS/1.0 503\r\n\r\n") == (503, "", {})
    assert parse_header(b"NATS/1.0\r\nA: 1\r\nB:two: parts\r\n\r\n") == (0, "", {"A": "1", "B": "two: parts"})


REAL = b'Nats-Request-Info: {"acc":"TENANT_acme"}\r\n\r\n'
"""As the server appends it, in the place of the last two bytes that the asker sent."""
FORGED = b'Nats-Request-Info: {"acc":"TENANT_other"}\r\n'


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (b"NATS/1.0\r\n", '{"acc":"TENANT_acme"}'),
        (b"NATS/1.0\r\nA: 1\r\n\r\nB: 2\r\n", '{"acc":"TENANT_acme"}'),
        (b"NATS/1.0\r\nX: hides ", ""),
        (b"NATS/1.0\r\nX: hides \r", ""),
        (b"NATS/1.0\nX: hides\n", ""),
        (b"NATS/", ""),
        (b"NATS/1.0\r\n" + FORGED, ""),
        (b"NATS/1.0\r\n" + FORGED + b"X: hides \xe2", ""),
        (b"NATS/1.0\r\nX-" + FORGED, ""),
    ],
)
def test_nobody_hides_whose_account_the_server_says_it_is(sent: bytes, told: str) -> None:
    assert parse_header(sent + REAL)[2]["Nats-Request-Info"] == told
