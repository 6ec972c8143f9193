"""What the running system says about itself: metrics of the contract, logs that narrate."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from llorch_shared.metrics import METRICS
from support.client import TaskClient, Transcript, task_request
from support.system import System, mock_pool

pytestmark = [pytest.mark.nats, pytest.mark.system]

TOKEN = "pl4nted-secret-of-this-test"


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return ("asyncio", {"use_uvloop": True})


@pytest.fixture(scope="module")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    """A system that asks for a token. The last test stops it."""
    async with System(
        tmp_path_factory.mktemp("guarded"),
        pools=[mock_pool(replicas=1, slots=2, rate=200)],
        token=TOKEN,
        settings={"gateway": {"auth_optional": False}},
    ) as running:
        yield running


async def run_tasks(client: TaskClient, count: int, *, mark: str = "observed") -> list[Transcript]:
    """Admit and read `count` tasks, each under a correlation id `<mark>-<n>`."""
    transcripts = []
    for number in range(count):
        request = task_request(max_tokens=5 + number, prompt=f"prompt-text-{number}")
        client.http.headers["x-correlation-id"] = f"{mark}-{number}"
        await client.submit(request)
        transcript = await client.read(request.task_id)
        transcript.check()
        transcripts.append(transcript)
    return transcripts


async def scrape(system: System, name: str) -> str:
    headers = {"authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(base_url=system.url(name), headers=headers, timeout=20) as http:
        return (await http.get("/metrics")).raise_for_status().text


def lines_of(system: System, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in system.processes[name].log_path.read_text().splitlines()]


async def test_every_sample_of_every_service_is_in_the_contract(guarded: System) -> None:
    await run_tasks(guarded.client(), 2)
    for name in guarded.processes:
        for family in text_string_to_metric_families(await scrape(guarded, name)):
            contract = f"{family.name}_total" if family.type == "counter" else family.name
            assert contract in METRICS, f"{name} exposes {contract}"
            assert family.type == METRICS[contract].kind
            for sample in family.samples:
                labels = set(sample.labels) - ({"le"} if family.type == "histogram" else set())
                assert labels == set(METRICS[contract].labels), f"{name}: {sample}"


async def test_tokens_are_counted_as_they_were_streamed(guarded: System) -> None:
    streamed_before = await guarded.metric("poold-1", "tokens_out_total", pool_id="mock")
    started_before = await guarded.metric("poold-1", "tasks_started_total", pool_id="mock")
    enqueued_before = await guarded.metric("gateway-1", "tasks_enqueued_total", pool_id="mock")
    transcripts = await run_tasks(guarded.client(), 3)
    streamed = sum(len(transcript.tokens) for transcript in transcripts)
    assert streamed == 5 + 6 + 7
    assert await guarded.metric("poold-1", "tokens_out_total", pool_id="mock") == streamed_before + streamed
    assert await guarded.metric("poold-1", "tasks_started_total", pool_id="mock") == started_before + 3
    assert await guarded.metric("gateway-1", "tasks_enqueued_total", pool_id="mock") == enqueued_before + 3
    assert await guarded.metric("gateway-1", "bus_connected") == 1
    assert await guarded.metric("scheduler-1", "scheduler_active") == 1


async def test_every_log_line_is_json_with_a_sentence_and_its_taxonomy(guarded: System) -> None:
    await run_tasks(guarded.client(), 1)
    for name in guarded.processes:
        lines = lines_of(guarded, name)
        assert lines, name
        for line in lines:
            assert {"ts", "level", "service", "logger", "human"} <= line.keys()
            assert line["level"] in ("debug", "info", "warning", "error"), line
            assert len(line["human"]) <= 200, line
            assert line["level"] != "error", line
        assert any({"actor", "action"} <= line.keys() for line in lines), f"{name} narrates nothing"


async def test_a_correlation_id_is_found_from_the_gateway_to_the_node(guarded: System) -> None:
    [transcript] = await run_tasks(guarded.client(), 1, mark="followed")
    for name in ("gateway-1", "scheduler-1", "poold-1"):
        found = [line for line in lines_of(guarded, name) if line.get("correlation_id") == "followed-0"]
        assert found, f"{name} does not mention the correlation id"
        assert any(line.get("task_id") == transcript.task_id for line in found)
        assert len(found) <= 8, f"{name} writes {len(found)} lines for one task of 5 tokens"


async def test_asked_to_stop_every_service_leaves_with_code_0_and_leaves_nobody_behind(guarded: System) -> None:
    await run_tasks(guarded.client(), 1)
    await guarded.stop()
    assert {name: process.exit_code for name, process in guarded.processes.items()} == dict.fromkeys(
        guarded.processes, 0
    )
