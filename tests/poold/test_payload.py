"""A prompt by reference: the node reads it after its claim, and a task whose prompt is no good ends."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from llorch_poold.mock_text import text_of
from llorch_poold.payload import checked
from llorch_shared import streams
from llorch_shared.errors import OrchError
from llorch_shared.objects import Objects
from llorch_shared.wire.objects import ObjectRef
from llorch_shared.wire.task import Payload, TaskState
from support.nats_server import NatsServer
from support.node_harness import NodeHarness, mock_pool, task_request

REF = ObjectRef(digest=f"sha256:{'0' * 64}", bytes=100)


def by_reference(ref: ObjectRef, **changes: Any) -> dict[str, Any]:
    return {"prompt": None, "payload_ref": msgspec.to_builtins(ref), **changes}


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (Payload(), "exactly one"),
        (Payload(prompt="a", inputs=("b",)), "exactly one"),
        (Payload(inputs=("b",)), "needs a prompt"),
        (Payload(prompt="x" * 1_000_000), "do not fit ctx"),
    ],
)
def test_what_a_reference_stands_for_is_guarded_as_if_it_were_in_the_request(payload: Payload, says: str) -> None:
    request = task_request(**by_reference(REF))
    with pytest.raises(OrchError, match=says):
        checked(request, payload)
    assert checked(request, Payload(prompt="a")) == msgspec.structs.replace(request, payload_ref=None, prompt="a")


@pytest.mark.nats
async def test_a_task_runs_with_the_prompt_it_refers_to_and_ends_where_that_is_no_good(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    pool = mock_pool(rate=0, ctx=32_768)
    async with NodeHarness(nats_server, tmp_path, pools=[pool]) as node:
        await node.ready()
        objects = Objects(node.bus)
        prompt = "word " * 300_000
        ref = await objects.put(msgspec.json.encode(Payload(prompt=prompt)))
        wishes = {"ctx": 32_768, "seed": 3, "max_tokens": 5}
        refused = await node.until_ended(await node.place(**by_reference(ref, **wishes)))
        assert refused.data("error")[0]["code"] == "INVALID_PARAMS", "300,000 tokens are more than the ctx"
        prompt = f"{'w' * 1_500_000} end"
        ref = await objects.put(msgspec.json.encode(Payload(prompt=prompt)))
        task = await node.until_ended(await node.place(**by_reference(ref, **wishes)))
        assert task.text == text_of(prompt, 3, 5)
        assert (await node.run_of(task.task_id))[0].state is TaskState.DONE
        garbage = await objects.put(b"[]")
        for bad, detail in [
            (REF, "payload_missing"),
            (garbage, "payload_unreadable"),
            (msgspec.structs.replace(ref, bytes=10), "payload_refused"),
        ]:
            ended = await node.until_ended(await node.place(**by_reference(bad)))
            assert ended.data("error")[0]["detail"] == detail
        for chunk in await node.bus.replay(streams.OBJECTS, "$O.ART.C.>"):
            await node.bus.remove(streams.OBJECTS, chunk.seq)
        ended = await node.until_ended(await node.place(**by_reference(ref)))
        assert ended.data("error")[0]["detail"] == "payload_missing"
