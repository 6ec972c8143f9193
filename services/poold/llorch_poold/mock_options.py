"""The options of the mock engine: flags, whose defaults are `LLORCH_MOCK_*`, so that a pool's provisioning can set them
either way.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

VERSION: Final = "mock-stub-v0"


class Options(msgspec.Struct, frozen=True, kw_only=True):
    host: str
    port: int
    model: str
    ctx: int
    slots: int
    rate: float
    prefill_ms: int
    prefill_rate: float
    batch: int
    load_until: str
    stamp: bool
    log: str
    version: str
    chat_template: bool
    tools: bool


def parse_options(argv: Sequence[str], environment: Mapping[str, str]) -> Options:
    parser = argparse.ArgumentParser(prog="llorch-mock-engine", description="An engine without a model.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--model", default="mock:words")
    parser.add_argument("--ctx", type=int, default=8192, help="context of each slot, tokens")
    parser.add_argument("--slots", type=int, default=int(environment.get("LLORCH_MOCK_SLOTS", "1")))
    parser.add_argument(
        "--rate",
        type=float,
        default=float(environment.get("LLORCH_MOCK_RATE", "50")),
        help="tokens per second of each stream; 0 is as fast as it can",
    )
    parser.add_argument("--prefill-ms", type=int, default=int(environment.get("LLORCH_MOCK_PREFILL_MS", "0")))
    parser.add_argument(
        "--prefill-rate",
        type=float,
        default=float(environment.get("LLORCH_MOCK_PREFILL_RATE", "0")),
        help="prompt tokens per second of the whole engine; 0 reads prompts at once",
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=int(environment.get("LLORCH_MOCK_BATCH", "512")),
        help="prompt tokens that are read at once; a cancel is noticed between two batches",
    )
    parser.add_argument(
        "--load-until",
        default=environment.get("LLORCH_MOCK_LOAD_UNTIL", ""),
        help="say that the model is loading until this file exists",
    )
    parser.add_argument("--stamp", action="store_true", default=environment.get("LLORCH_MOCK_STAMP", "") == "1")
    parser.add_argument(
        "--log",
        default=environment.get("LLORCH_MOCK_LOG", ""),
        help="folder for a record of every generation; empty writes none",
    )
    parser.add_argument(
        "--version",
        default=environment.get("LLORCH_MOCK_VERSION", VERSION),
        help="what it says it is built from, for pools of two versions",
    )
    parser.add_argument(
        "--no-chat-template",
        dest="chat_template",
        action="store_false",
        default=environment.get("LLORCH_MOCK_CHAT_TEMPLATE", "1") == "1",
    )
    parser.add_argument(
        "--no-tools",
        dest="tools",
        action="store_false",
        default=environment.get("LLORCH_MOCK_TOOLS", "1") == "1",
        help="its chat template takes no tools",
    )
    return msgspec.convert(vars(parser.parse_args(argv)), Options)
