"""Whatever an engine sends, a generation ends whole or with a named failure: never shorter, never without a bound.

Each case is what a peer writes to a real socket after one request.
"""

import asyncio
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import pytest

from llorch_poold.adapters.llamacpp import LlamaCpp
from llorch_poold.adapters.port import EngineBroke, EngineBusy, EngineFailure, Finish, RequestRejected
from llorch_poold.sse_decode import EVENT_BYTES_MAX
from poold.engines import HEAD, Collected, call, chunked, last, read_request, scripted, token

OUT_OF_MEMORY = {"error": {"code": 500, "message": "out of memory", "type": "server_error"}}
AB = (token(" a", 1), token(" b", 2))


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def stream(*parts: bytes) -> bytes:
    """A stream that is still open after these bytes."""
    return HEAD + b"".join(chunk(part) for part in parts)


def frames(*payloads: object) -> bytes:
    return b"".join(b"data: %b\n\n" % msgspec.json.encode(payload) for payload in payloads)


def whole(body: bytes, kind: str = "application/json", status: str = "200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b" % (
        status.encode(),
        kind.encode(),
        len(body),
        body,
    )


def error(message: str, kind: str, code: int) -> bytes:
    return msgspec.json.encode({"error": {"code": code, "message": message, "type": kind}})


class Case(NamedTuple):
    name: str
    answer: bytes
    tokens: int
    """That may have come before: how many depends on what one read brings."""
    says: str
    failure: type[EngineFailure] = EngineBroke


CASES = [
    # not UTF-8, not JSON, not a frame
    Case(
        "invalid UTF-8 in a text",
        stream(frames(*AB), b'data: {"content":"\xff\xfe","tokens_predicted":3}\n\n'),
        2,
        "not a compl",
    ),
    Case("half a character in a text", stream(b'data: {"content":"\xc3","tokens_predicted":1}\n\n'), 0, "not a compl"),
    Case("a lone surrogate", stream(b'data: {"content":"\\ud800","tokens_predicted":1}\n\n'), 0, "not a completion"),
    Case("no JSON", stream(frames(*AB), b"data: <oops>\n\n"), 2, "not a completion frame"),
    Case("[DONE]", stream(frames(*AB), b"data: [DONE]\n\n"), 2, "not a completion frame"),
    Case("an empty event", stream(b"data:\n\n"), 0, "not a completion frame"),
    Case("JSON without end", stream(b'data: {"content":"a"\n\n'), 0, "not a completion frame"),
    Case("deep JSON", stream(b'data: {"x":' + b"[" * 100_000 + b"\n\n"), 0, "not a completion frame"),
    Case("a text that is a number", stream(frames({"content": 7, "tokens_predicted": 1})), 0, "not a completion frame"),
    Case("another engine's frame", stream(frames({"choices": [{"text": " a"}]})), 0, "tokens_predicted"),
    Case("a count over all counts", stream(frames(token("é", 10**18))), 0, "not a completion frame"),
    Case("a negative count", stream(frames(token("a", -4))), 0, "not a completion frame"),
    Case("a negative prompt", stream(frames({"tokens_predicted": 0, "prompt_progress": {"total": -1}})), 0, "not a"),
    # broken framing
    Case("a line that lost its field", stream(frames(token(" a", 1)), b'ta: {"content":" b"}\n\n'), 1, "no event"),
    Case("bare JSON lines", stream(b'{"content":" a","tokens_predicted":1}\n'), 0, "no event"),
    Case(
        "two events run together", stream(b'data: {"content":" a"}\ndata: {"content":" b"}\n\n'), 0, "not a completion"
    ),
    Case("an HTML page in a stream", stream(b"<html>\n<body>busy</body>\n"), 0, "no event"),
    Case("a line without end", stream(b"data: " + b"x" * (EVENT_BYTES_MAX + 10)), 0, "over"),
    Case("an event without end", stream(b"data: x\n" * (EVENT_BYTES_MAX // 7 + 1)), 0, "over"),
    Case("a broken chunk", stream(frames(*AB)) + b"zz\r\n", 2, "HTTP"),
    # 200, and no stream
    Case("a JSON error with 200", whole(msgspec.json.encode(OUT_OF_MEMORY)), 0, "out of memory"),
    Case("a refusal with 200", whole(error("bad grammar", "invalid_request_error", 400)), 0, "bad gr", RequestRejected),
    Case("no slot with 200", whole(error("no slot", "unavailable_error", 503)), 0, "no slot", EngineBusy),
    Case("an HTML page with 200", whole(b"<html>hello</html>", "text/html"), 0, "text/html"),
    Case("no content type", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 0, "no content type"),
    Case("a stream called JSON", chunked(*AB, last(2)).replace(b"text/event-stream", b"application/json"), 0, "json"),
    Case("an endless page with 200", whole(b"x" * 300_000, "text/html")[:200_000], 0, "text/html"),
    Case("nothing with 204", b"HTTP/1.1 204 No Content\r\n\r\n", 0, "HTTP 204"),
    Case("a redirect", whole(b"", status="302 Found"), 0, "HTTP 302"),
    # errors
    Case("an error page that is not UTF-8", whole(b'{"error":{"message":"\xff"}}', status="400 Bad"), 0, "HTTP 400"),
    Case("an error frame first", stream(frames(OUT_OF_MEMORY)), 0, "out of memory"),
    Case("an error frame later", stream(frames(*AB, OUT_OF_MEMORY)), 2, "out of memory"),
    Case("an error event", stream(frames(*AB), b"event: error\n" + frames(OUT_OF_MEMORY)), 2, "out of memory"),
    Case("an error of another shape", stream(frames(*AB, {"error": "oops"})), 2, "not a completion frame"),
    # too early
    Case("nothing at all", b"", 0, "closed"),
    Case("half a head", b"HTTP/1.1 200 OK\r\nContent-Ty", 0, "closed"),
    Case("only a head", HEAD, 0, "closed"),
    Case("cut after a token", stream(frames(*AB)), 2, "closed"),
    Case("cut inside a frame", stream(frames(*AB), b'data: {"cont'), 2, "closed"),
    Case("cut after the last token", stream(frames(*(token(f" {n}", n) for n in range(1, 11)))), 10, "closed"),
    Case(
        "ended after the last token", chunked(*(token(f" {n}", n) for n in range(1, 11))), 10, "without its last frame"
    ),
    Case("ended in order without a word", chunked(), 0, "without its last frame"),
    # counts
    Case("a last frame that counts more", stream(frames(*AB, last(9))), 2, "counts 9 tokens and sent 2"),
    Case("a last frame that counts less", stream(frames(*AB, last(1))), 2, "counts 1 tokens and sent 2"),
    Case("only a last frame", stream(frames(last(10))), 0, "counts 10 tokens and sent 0"),
    Case("a token that got lost", stream(frames(token(" a", 1), token(" c", 3))), 1, "after token 1 came token 3"),
    Case("lost before an empty one", stream(frames(token(" a", 1), token("", 3))), 1, "after token 1 came token 3"),
    Case("very many lost", stream(frames(token(" a", 1), token("é", 300_000))), 1, "after token 1"),
    Case("a token twice", stream(frames(*AB, token(" b", 2))), 2, "after token 2 came a text"),
    Case("a count that goes back", stream(frames(*AB, token("", 1))), 2, "after token 2 came a text"),
    Case("more than was asked for", stream(frames(*(token(" a", n) for n in range(1, 12)))), 10, "more than the 10"),
]


def by_name(case: Case) -> str:
    return case.name.replace(" ", "_")


async def given(answer: bytes) -> Collected:
    """What the adapter makes of it, the connection being closed after it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with scripted(serve) as http:
        sink = Collected()
        LlamaCpp(http).submit(call(max_tokens=10), sink)
        return await sink.over()


@pytest.mark.parametrize("case", CASES, ids=by_name)
async def test_what_is_no_answer_is_a_named_failure(case: Case) -> None:
    sink = await given(case.answer)
    assert sink.finish is None
    assert type(sink.failure) is case.failure
    assert case.says in str(sink.failure)
    assert len(sink.texts) <= case.tokens


def endless() -> Iterator[bytes]:
    while True:
        yield b"data: " + b"x" * 100_000


async def test_a_line_that_never_ends_is_cut_off_and_not_kept() -> None:
    closed = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(HEAD)
        try:
            for part in endless():
                writer.write(chunk(part))
                await writer.drain()
        finally:
            closed.set()

    async with scripted(serve) as http:
        sink = Collected()
        LlamaCpp(http).submit(call(), sink)
        await sink.over()
        assert "over" in str(sink.failure)
        async with asyncio.timeout(15):
            await closed.wait()


async def test_an_engine_that_talks_on_after_its_last_frame_is_left() -> None:
    closed = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(stream(frames(*AB, last(2))))
        try:
            while True:
                writer.write(chunk(frames(token(" more", 3))))
                await writer.drain()
        finally:
            closed.set()

    async with scripted(serve) as http:
        sink = Collected()
        LlamaCpp(http).submit(call(), sink)
        await sink.over()
        assert sink.finish == Finish("length", 5, 2)
        async with asyncio.timeout(15):
            await closed.wait()
        assert sink.texts == [" a", " b"]


async def test_what_llama_server_leaves_out_is_no_garbage() -> None:
    """Tokens inside a character have no frame; comments are pings; a character that the end cuts is not sent."""
    sink = await given(HEAD + chunk(b": ping\n\n" + frames(token("é", 3), token("", 4), last(7, "eos"))) + b"0\r\n\r\n")
    assert sink.texts == ["", "", "é", "", "", "", ""]
    assert sink.finish == Finish("stop", 5, 7)
