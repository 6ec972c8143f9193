"""What the mock engine tells of itself, as llama-server answers /props, /slots and /metrics."""

from llorch_poold.mock_options import Options
from llorch_poold.mock_slots import MockEngine


def props(engine: MockEngine, options: Options) -> dict[str, object]:
    return {
        "total_slots": len(engine.slots),
        "model_path": options.model,
        "model_alias": "mock",
        "build_info": options.version,
        "default_generation_settings": {"n_ctx": engine.ctx},
        "chat_template_caps": {"supports_tools": options.tools, "supports_tool_calls": options.tools},
    }


def slots(engine: MockEngine) -> list[dict[str, object]]:
    return [_slot(engine, number) for number in range(len(engine.slots))]


def _slot(engine: MockEngine, number: int) -> dict[str, object]:
    occupant = engine.slots[number]
    slot: dict[str, object] = {"id": number, "n_ctx": engine.ctx, "is_processing": occupant is not None}
    slot["n_prompt_tokens"] = engine.cache.tokens(number)
    if occupant is not None:
        slot["n_prompt_tokens"] = occupant.prompt_tokens
        slot["n_prompt_tokens_processed"] = occupant.prompt_read
        slot["n_prompt_tokens_cache"] = occupant.cached
        slot["next_token"] = [{"n_decoded": occupant.sent, "n_remain": occupant.total - occupant.sent}]
    return slot


def metrics(engine: MockEngine) -> bytes:
    busy = sum(slot is not None for slot in engine.slots)
    return (
        f"llamacpp:prompt_tokens_total {engine.prompt_tokens_total}\n"
        f"llamacpp:tokens_predicted_total {engine.tokens_total}\n"
        f"llamacpp:requests_processing {busy}\n"
        f"llamacpp:requests_deferred {len(engine.deferred)}\n"
    ).encode()
