"""The mock engine's own record of what it generated."""

import asyncio
from pathlib import Path

from llorch_poold.mock_log import LINE_DECODER, LogEvent, LogLine
from poold.engines import Collected, call, mock_engine


def lines(folder: Path) -> list[LogLine]:
    return [LINE_DECODER.decode(line) for path in folder.glob("*.jsonl") for line in path.read_bytes().splitlines()]


async def test_a_generation_is_recorded_when_it_begins_and_when_it_ends(tmp_path: Path) -> None:
    async with mock_engine("--rate", "0", "--log", str(tmp_path)) as (engine, _):
        sink = Collected()
        engine.submit(call(max_tokens=3, prompt="say it"), sink)
        await sink.over()
    begin, end = lines(tmp_path)
    assert (begin.event, begin.prompt, begin.seed, begin.total) == (LogEvent.BEGIN, "say it", 7, 3)
    assert (end.event, end.number, end.sent) == (LogEvent.END, begin.number, 3)
    assert begin.at <= end.at


async def test_a_generation_that_was_aborted_is_recorded_with_what_it_said(tmp_path: Path) -> None:
    async with mock_engine("--rate", "20", "--log", str(tmp_path)) as (engine, _):
        sink = Collected()
        generation = engine.submit(call(max_tokens=1000), sink)
        await sink.until(lambda: sink.texts)
        generation.abort()
        async with asyncio.timeout(15):
            while not await engine.slot_free(0):
                await asyncio.sleep(0.01)
        begin, end = lines(tmp_path)
    assert begin.total == 1000
    assert 1 <= end.sent < 1000
