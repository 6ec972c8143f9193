"""Which pool a typed task goes to."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from llorch_ctl.commands.task import _print_stream
from llorch_ctl.core.task_request import NoChoice, Template, Wish, build, choose
from llorch_shared.contracts.examples import STREAMS
from llorch_shared.wire.frames import Event, split_events
from llorch_shared.wire.registry import Capabilities, EngineCapability, PoolCapability
from llorch_shared.wire.task import Determinism, Engine, Failover, PlacementMode, Workload

TASK, SESSION = "0d7ecc1e-1fd6-4b8e-9f4a-1d2f7e0a3b5c", "1d7ecc1e-1fd6-4b8e-9f4a-1d2f7e0a3b5c"


def offered(pool_id: str, model: str, **changes: Any) -> PoolCapability:
    facts: dict[str, Any] = {
        "pool_id": pool_id,
        "model_ref": model,
        "ctx_max": 2048,
        "slots_total": 2,
        "slots_free": 2,
        "engine_version": "1",
        "model_digest": "",
        "sampler_profile_version": "v1",
        "device": "cuda:0",
        "ready": True,
        "max_tokens_out": 2048,
    }
    return PoolCapability(**{**facts, **changes})


def system(*pools: PoolCapability, engine: Engine = Engine.LLAMACPP) -> Capabilities:
    one = EngineCapability(
        engine=engine,
        ctx_max=2048,
        supported_workloads=(Workload.COMPLETION,),
        rate_limits={},
        features={},
        concurrency=2,
        pools=pools,
    )
    return Capabilities(api_version="1", engines=(one,))


def wish(**changes: Any) -> Wish:
    return Wish(task_id=TASK, session_id=SESSION, prompt="hi", **changes)


def test_the_only_pool_needs_no_naming() -> None:
    assert choose(system(offered("a", "m")), wish())[1].pool_id == "a"


def test_of_two_pools_of_one_model_the_ready_one_is_taken() -> None:
    found = choose(system(offered("a", "m", ready=False), offered("b", "m")), wish())
    assert found[1].pool_id == "b"


def test_a_prompt_is_not_offered_to_a_pool_that_completes_none() -> None:
    both = system(offered("a", "m"), offered("b", "embeds", workloads=(Workload.EMBEDDING,)))
    assert choose(both, wish())[1].pool_id == "a"
    with pytest.raises(NoChoice):
        choose(both, wish(pool="b"))


def test_two_models_must_be_told_apart() -> None:
    two = system(offered("a", "m"), offered("b", "n"))
    with pytest.raises(NoChoice, match=r"a .*m.*b .*n"):
        choose(two, wish())
    assert choose(two, wish(model="n"))[1].pool_id == "b"


def test_what_nobody_serves_lists_what_there_is() -> None:
    with pytest.raises(NoChoice, match=r"no pool fits; the system has a \(llamacpp, m\)"):
        choose(system(offered("a", "m")), wish(model="other"))
    with pytest.raises(NoChoice, match="no pools"):
        choose(Capabilities(api_version="1", engines=()), wish())


def test_a_named_pool_is_pinned_and_the_template_wraps_the_prompt() -> None:
    request = build(Engine.LLAMACPP, offered("a", "m"), wish(pool="a", template=Template.CHATML))
    assert request.placement is not None
    assert (request.placement.mode, request.placement.pin_pool_id) == (PlacementMode.PIN, "a")
    assert request.prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert request.ctx == 2048


def test_what_becomes_of_a_cut_stream_is_asked_for() -> None:
    typed = wish(determinism=Determinism.BEST_EFFORT, failover=Failover.RESTART)
    request = build(Engine.LLAMACPP, offered("a", "m"), typed)
    assert (request.determinism, request.failover) == (Determinism.BEST_EFFORT, Failover.RESTART)
    assert build(Engine.LLAMACPP, offered("a", "m"), wish()).failover is Failover.RESUME


async def test_a_person_is_told_that_the_text_above_is_void(capsys: pytest.CaptureFixture[str]) -> None:
    async def events() -> AsyncIterator[Event]:
        for event in split_events(STREAMS["begun anew with another replica"].encode()):
            yield event

    assert await _print_stream(events(), as_json=False) == 0
    out, err = capsys.readouterr()
    assert out == "Rivers flow.\nStreams run.\n"
    assert "void" in err
