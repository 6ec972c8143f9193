"""Recorded loads: both formats, and rows that cannot be replayed."""

import pytest

from llorch_scheduler.simulator.arrivals import Trace, TraceRow
from llorch_scheduler.simulator.scenario import replayed
from llorch_scheduler.simulator.scenarios import scenario as shipped
from llorch_scheduler.simulator.summary import summarise
from llorch_scheduler.simulator.traces import TraceError, read_trace
from llorch_shared.wire.task import Priority
from scheduler.simulator_scenarios import Watched

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2225670,879,55
"""
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45.5,GPT-4,1087,230,1317,API log
118,ChatGPT,417,0,417,Conversation log
"""


def read(text: str) -> Trace:
    return read_trace(text.splitlines(keepends=True), "t.csv")


def test_an_azure_trace_counts_from_its_first_row() -> None:
    rows = read(AZURE).rows
    assert [(row.prompt, row.output, row.priority) for row in rows] == [
        (374, 44, Priority.INTERACTIVE),
        (396, 109, Priority.INTERACTIVE),
        (879, 55, Priority.INTERACTIVE),
    ]
    assert [row.at_ms for row in rows] == pytest.approx([0, 4_314.579, 4_541.977], abs=0.01)


def test_an_azure_trace_may_name_its_time_zone() -> None:
    rows = ("2024-05-10 00:00:00.009930+00:00,2162,5", "2024-05-10 00:00:01+00:00,1,2")
    text = "\n".join(("TIMESTAMP,ContextTokens,GeneratedTokens", *rows))
    assert read(text).rows[1].at_ms == pytest.approx(990.07, abs=0.01)


def test_burstgpt_rows_bring_tenant_and_class_and_failed_ones_stay_out() -> None:
    assert read(BURSTGPT).rows == (
        TraceRow(0.0, 472, 18, "chatgpt", Priority.INTERACTIVE),
        TraceRow(40_500.0, 1087, 230, "gpt-4", Priority.BATCH),
    )


def test_columns_that_newer_burstgpt_files_add_are_left_alone() -> None:
    text = (
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "0,s,1,GPT-4,100,10,110,Conversation log\n"
    )
    assert read(text).rows == (TraceRow(0.0, 100, 10, "gpt-4", Priority.INTERACTIVE),)


def test_rows_in_disorder_are_put_in_order() -> None:
    first, *rest = AZURE.splitlines(keepends=True)
    assert read("".join([first, *reversed(rest)])) == read(AZURE)


def test_bad_rows_are_told_with_their_line_numbers() -> None:
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46,374,44\n"
        "yesterday,374,44\n"
        "2023-11-16 18:15:47,-1,44\n"
        "2023-11-16 18:15:48,374\n"
        "2023-11-16 18:15:49,374,4.5\n"
    )
    with pytest.raises(TraceError) as told:
        read(text)
    assert str(told.value).splitlines() == [
        "t.csv:3: 'yesterday' is not a date and time",
        "t.csv:4: '-1' is not a number of tokens",
        "t.csv:5: 2 columns instead of 3",
        "t.csv:6: '4.5' is not a number of tokens",
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("nan,ChatGPT,1,2,3,API log", "'nan' is not a number of seconds"),
        ("1,a*b,1,2,3,API log", "'a*b' is not the name of a model"),
        ("1,ChatGPT,1,2,3,Diary", "'Diary' is none of Conversation log, API log"),
        ("1,ChatGPT,1,2,,API log", "'' is not a number of tokens"),
    ],
)
def test_a_bad_burstgpt_row_is_told(row: str, said: str) -> None:
    with pytest.raises(TraceError, match=r"t\.csv:5: ") as told:
        read(BURSTGPT + row + "\n")
    assert said in str(told.value)


def test_many_bad_rows_are_told_up_to_a_limit() -> None:
    with pytest.raises(TraceError, match=r"and 15 more$"):
        read("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "x\n" * 25)


@pytest.mark.parametrize("text", ["", "a,b,c\n1,2,3\n"])
def test_another_header_is_refused_with_those_that_are_read(text: str) -> None:
    with pytest.raises(TraceError, match=r"t\.csv:1: .*ContextTokens.*Log Type"):
        read(text)


def test_a_trace_without_rows_is_refused() -> None:
    with pytest.raises(TraceError, match="no row"):
        read("TIMESTAMP,ContextTokens,GeneratedTokens\n")


def test_a_replayed_trace_ends_every_row_and_refuses_what_no_context_holds() -> None:
    text = AZURE + "2023-11-16 18:15:52,20000,55\n"
    simulation = Watched(replayed(shipped("home"), read(text)))
    result = summarise(simulation.run(), scale=1)
    simulation.check_finished()
    assert result.outcomes["done"] == 3
    assert result.outcomes["too_long"] == 1
    assert result.tenants[0].name == "trace"
