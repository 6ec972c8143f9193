"""llama-server's dialect: frames as recorded from the real server, and a mock engine that misbehaves on demand."""

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from llorch_poold.adapters.llamacpp import LlamaCpp, completion_body
from llorch_poold.adapters.port import EngineBroke, EngineBusy, Finish, RequestRejected
from llorch_poold.mock_text import text_of
from poold.engines import (
    HEAD,
    Collected,
    call,
    chunked,
    last,
    mock_engine,
    read_request,
    scripted,
    set_fault,
    set_faults,
    token,
)


async def collect(answer: bytes, *, pieces: Callable[[bytes], list[bytes]] = lambda data: [data]) -> Collected:
    """What the adapter makes of one response."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        for piece in pieces(answer):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()

    async with scripted(serve) as http:
        sink = Collected()
        LlamaCpp(http).submit(call(), sink)
        return await sink.over()


def byte_by_byte(data: bytes) -> list[bytes]:
    return [data[position : position + 1] for position in range(len(data))]


PROGRESS = {"content": "", "tokens": [0], "tokens_predicted": 0, "prompt_progress": {"total": 5, "processed": 5}}


async def test_progress_frames_are_no_tokens() -> None:
    sink = await collect(chunked(PROGRESS, token(" a", 1), PROGRESS, token(" b", 2), last(2)))
    assert sink.texts == [" a", " b"]
    assert sink.tokens_in == 5
    assert sink.finish == Finish("length", 5, 2)


async def test_frames_split_inside_a_character_are_whole_again() -> None:
    sink = await collect(chunked(token(" é", 1), token("🎉", 2), last(2, "eos")), pieces=byte_by_byte)
    assert sink.texts == [" é", "🎉"]
    assert sink.finish is not None
    assert sink.finish.reason == "stop"


async def test_tokens_without_a_frame_of_their_own_keep_their_index() -> None:
    """Half of a character sends no frame; the next frame counts for both. The end token sends a frame without text."""
    sink = await collect(chunked(token("a", 1), token("🎉", 4), token("", 5), last(5, "eos")))
    assert sink.texts == ["a", "", "", "🎉", ""]


async def test_held_back_text_gives_empty_tokens_and_the_same_count() -> None:
    sink = await collect(chunked(token("7", 1), token("", 2), token("", 3), last(3, "word")))
    assert (sink.texts, sink.text) == (["7", "", ""], "7")
    assert sink.finish is not None
    assert sink.finish.tokens_out == 3


async def test_a_count_that_does_not_fit_is_a_broken_engine() -> None:
    sink = await collect(chunked(token("a", 1), token("b", 2), token("c", 3), last(2)))
    assert isinstance(sink.failure, EngineBroke)


async def test_a_stream_that_ends_without_its_last_frame_is_a_broken_engine() -> None:
    sink = await collect(chunked(token("a", 1)))
    assert isinstance(sink.failure, EngineBroke)
    cut = await collect(HEAD + b"5\r\nda")
    assert isinstance(cut.failure, EngineBroke)


async def test_an_error_frame_in_the_stream_is_read() -> None:
    error = {"error": {"code": 500, "message": "out of memory", "type": "server_error"}}
    sink = await collect(chunked(token("a", 1), error))
    assert sink.texts == ["a"]
    assert isinstance(sink.failure, EngineBroke)
    assert "out of memory" in str(sink.failure)


async def test_the_body_of_a_strict_task_starts_cold_with_its_seed() -> None:
    strict = msgspec.json.decode(completion_body(call(seed=9, slot=3)))
    assert strict["cache_prompt"] is False
    assert (strict["seed"], strict["id_slot"], strict["stream"], strict["return_progress"]) == (9, 3, True, True)
    assert (strict["temperature"], strict["top_k"], strict["top_p"], strict["n_predict"]) == (0.7, 40, 0.9, 10)
    warm = msgspec.json.decode(completion_body(call(determinism="best_effort")))
    assert warm["cache_prompt"] is True
    cold = msgspec.json.decode(completion_body(call(determinism="best_effort", kv_hint="cold")))
    assert cold["cache_prompt"] is False


async def test_the_engine_is_told_the_correlation_id_and_no_conversation() -> None:
    heads = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await read_request(reader))[0].lower())
        writer.write(chunked(last(0)))

    async with scripted(serve) as http:
        sink = Collected()
        LlamaCpp(http).submit(call(), sink)
        await sink.over()
    assert b"x-correlation-id: corr-1\r\n" in heads[0]
    assert b"conversation" not in heads[0]


async def test_the_mock_engine_speaks_the_dialect() -> None:
    async with mock_engine("--slots", "2", "--rate", "0", "--ctx", "64") as (engine, _):
        assert (await engine.health()).ready
        assert await engine.props() == (2, "mock:words", "mock-stub-v0", True)
        sink = Collected()
        engine.submit(call(max_tokens=300, prompt="one two"), sink)
        await sink.over()
        assert sink.text == text_of("one two", 7, 300)
        assert sink.finish == Finish("length", 2, 300)
        assert max(sink.reads) > 1, "tokens of one read are handed over together"
        assert (await engine.counters())["llamacpp:tokens_predicted_total"] == 300
        ended = Collected()
        engine.submit(call(max_tokens=300, prompt="stop early [tokens=3]"), ended)
        assert (await ended.over()).finish == Finish("stop", 3, 3)


async def test_a_paced_engine_keeps_its_pace() -> None:
    async with mock_engine("--slots", "8", "--rate", "100") as (engine, _):
        begin = asyncio.get_running_loop().time()
        sinks = [Collected() for _ in range(8)]
        for slot, sink in enumerate(sinks):
            engine.submit(call(slot=slot, max_tokens=31), sink)
        await asyncio.gather(*(sink.over() for sink in sinks))
        assert asyncio.get_running_loop().time() - begin >= 0.29
        assert [len(sink.texts) for sink in sinks] == [31] * 8


async def test_closing_the_call_frees_the_slot() -> None:
    async with mock_engine("--rate", "20") as (engine, _):
        sink = Collected()
        generation = engine.submit(call(max_tokens=1000), sink)
        await sink.until(lambda: sink.texts)
        assert not await engine.slot_free(0)
        generation.abort()
        async with asyncio.timeout(15):
            while not await engine.slot_free(0):
                await asyncio.sleep(0.01)
        assert sink.finish is None
        assert sink.failure is None


async def test_a_request_waits_for_the_slot_it_names() -> None:
    async with mock_engine("--slots", "2", "--rate", "20") as (engine, _):
        first, second, other = Collected(), Collected(), Collected()
        holder = engine.submit(call(slot=1, max_tokens=1000), first)
        await first.until(lambda: first.texts)
        engine.submit(call(slot=1, max_tokens=1), second)
        engine.submit(call(slot=0, max_tokens=1), other)
        assert (await other.over()).finish is not None
        assert second.began == 0
        holder.abort()
        assert (await second.over()).finish is not None


async def test_a_prompt_over_the_context_is_the_callers_mistake() -> None:
    async with mock_engine("--ctx", "4") as (engine, _):
        sink = Collected()
        engine.submit(call(prompt="a b c d e f"), sink)
        await sink.over()
        assert isinstance(sink.failure, RequestRejected)
        assert "6 tokens" in str(sink.failure)
        assert sink.began == 0


@pytest.mark.parametrize(
    ("fault", "kind", "tokens"),
    [
        ({"kind": "reset", "after": 3}, EngineBroke, 3),
        ({"kind": "garbage", "after": 2}, EngineBroke, 2),
        ({"kind": "utf8", "after": 2}, EngineBroke, 2),
        ({"kind": "event", "after": 2}, EngineBroke, 2),
        ({"kind": "flood", "after": 2}, EngineBroke, 2),
        ({"kind": "eof", "after": 2}, EngineBroke, 2),
        ({"kind": "eof", "after": 20}, EngineBroke, 20),
        ({"kind": "reset", "after": 20}, EngineBroke, 20),
        ({"kind": "fail", "after": 2}, EngineBroke, 2),
        ({"kind": "gap", "after": 2}, EngineBroke, 2),
        ({"kind": "miscount"}, EngineBroke, 20),
        ({"kind": "error_body"}, EngineBroke, 0),
        ({"kind": "page"}, EngineBroke, 0),
        ({"kind": "error"}, EngineBroke, 0),
        ({"kind": "busy"}, EngineBusy, 0),
    ],
)
async def test_what_a_faulty_engine_does_is_named(fault: dict[str, object], kind: type[Exception], tokens: int) -> None:
    async with mock_engine("--rate", "500") as (engine, http):
        await set_fault(http, **fault, times=1)
        sink = Collected()
        engine.submit(call(max_tokens=20), sink)
        await sink.over()
        assert isinstance(sink.failure, kind)
        assert len(sink.texts) <= tokens
        again = Collected()
        engine.submit(call(max_tokens=20), again)
        assert (await again.over()).finish is not None


async def test_faults_come_one_after_another() -> None:
    async with mock_engine("--rate", "0") as (engine, http):
        await set_faults(http, {"kind": "error", "times": 2}, {"kind": "none"}, {"kind": "page", "times": 1})
        said = []
        for _ in range(4):
            sink = Collected()
            engine.submit(call(max_tokens=2), sink)
            said.append(str((await sink.over()).failure))
        assert ["fault injected" in each for each in said] == [True, True, False, False]
        assert "text/html" in said[2]
        assert said[3] == "None"


async def test_a_long_prompt_is_read_batch_by_batch() -> None:
    async with mock_engine("--prefill-rate", "2000", "--batch", "16", "--ctx", "4096", "--slots", "2") as (engine, _):
        told: list[int] = []
        sinks = [Collected(), Collected()]
        for slot, sink in enumerate(sinks):
            sink.on_prompt = told.append  # type: ignore[method-assign]
            engine.submit(call(slot=slot, prompt="word " * 100, max_tokens=1), sink)
        await asyncio.gather(*(sink.over() for sink in sinks))
        assert [sink.finish for sink in sinks] == [Finish("length", 100, 1)] * 2
        assert len(told) >= 2 * 100 // 16, "a sign of life after every batch"


async def test_a_cancel_of_a_long_prompt_is_noticed_after_the_batch() -> None:
    flags = ("--prefill-rate", "100", "--ctx", "8192", "--slots", "2")
    async with mock_engine(*flags, "--batch", "4096") as (engine, _):
        sink = Collected()
        generation = engine.submit(call(prompt="word " * 8000), sink)
        await sink.until(lambda: sink.began)
        generation.abort()
        for _ in range(5):
            assert not await engine.slot_free(0), "the batch takes 40 s"
    async with mock_engine(*flags, "--batch", "4") as (engine, _):
        sinks = [Collected(), Collected()]
        generations = [engine.submit(call(slot=slot, prompt="word " * 8000), sinks[slot]) for slot in range(2)]
        for sink, generation in zip(sinks, generations, strict=True):
            await sink.until(lambda sink=sink: sink.began)
            generation.abort()
        async with asyncio.timeout(15):
            while not (await engine.slot_free(0) and await engine.slot_free(1)):
                await asyncio.sleep(0.01)


async def test_an_idle_slot_is_erased_and_a_busy_one_when_its_task_is_done() -> None:
    async with mock_engine("--slots", "2", "--rate", "20") as (engine, http):
        sink, busy = Collected(), Collected()
        engine.submit(call(slot=1, prompt="a b c d", max_tokens=2), sink)
        await sink.over()
        assert [await engine.erase_slot(1), await engine.erase_slot(1)] == [5, 0]
        generation = engine.submit(call(slot=0, prompt="a b c d", max_tokens=1000), busy)
        await busy.until(lambda: busy.texts)
        erasing = asyncio.create_task(engine.erase_slot(0))
        assert await engine.erase_slot(1) == 0
        assert not erasing.done()
        generation.abort()
        assert await erasing >= 4
        await set_fault(http, kind="no_erase", times=1)
        with pytest.raises(EngineBroke, match="slot-save-path"):
            await engine.erase_slot(0)


@pytest.mark.parametrize(
    "answer", [b'{"id_slot":1,"n_erased":0}', b'{"error":{"code":500}}', b"<html>", b'{"id_slot":0}']
)
async def test_an_erasure_is_believed_when_the_engine_says_so_of_this_slot(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert (await read_request(reader))[0].startswith(b"POST /slots/0?action=erase ")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer))
        await writer.drain()
        writer.close()

    async with scripted(serve) as http:
        with pytest.raises(EngineBroke):
            await LlamaCpp(http).erase_slot(0)


async def test_an_engine_loads_until_it_is_told() -> None:
    with tempfile.TemporaryDirectory() as folder:
        loaded = Path(folder) / "loaded"
        async with mock_engine("--load-until", str(loaded)) as (engine, _):
            health = await engine.health()
            assert (health.live, health.ready, health.detail) == (True, False, "HTTP 503: Loading model")
            loaded.touch()
            assert (await engine.health()).ready


async def test_a_hanging_engine_says_nothing_and_lets_go_when_left() -> None:
    async with mock_engine("--rate", "500") as (engine, http):
        await set_fault(http, kind="hang", after=2)
        sink = Collected()
        generation = engine.submit(call(max_tokens=20), sink)
        await sink.until(lambda: len(sink.texts) == 2)
        assert not await engine.slot_free(0)
        generation.abort()
        async with asyncio.timeout(15):
            while not await engine.slot_free(0):
                await asyncio.sleep(0.01)


async def test_an_engine_that_refuses_a_cancel_keeps_the_slot() -> None:
    async with mock_engine("--rate", "20") as (engine, http):
        await set_fault(http, kind="refuse_cancel")
        sink = Collected()
        generation = engine.submit(call(max_tokens=1000), sink)
        await sink.until(lambda: sink.texts)
        generation.abort()
        for _ in range(3):
            assert not await engine.slot_free(0)
