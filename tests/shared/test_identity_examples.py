"""The examples of README's "Who may call": they are valid, and mean what is said of them."""

import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from llorch_shared.auth import NonLoopbackWithoutToken, check_bind
from llorch_shared.settings import GatewaySettings, Settings
from llorch_shared.token_file import parse

README = (Path(__file__).parents[2] / "README.md").read_text()
SECTION = README.partition("## Who may call")[2].partition("\n## ")[0]
EXAMPLES = re.findall(r"```toml\n(.*?)```", SECTION, re.DOTALL)


def gateway(example: str) -> GatewaySettings:
    return msgspec.convert(tomllib.loads(example), Settings).gateway


def starts(example: str, *, token: bool) -> bool:
    wanted = gateway(example)
    try:
        check_bind(wanted.addr.rpartition(":")[0], guarded=token or bool(wanted.tokens_file))
    except NonLoopbackWithoutToken:
        return False
    return True


def test_there_are_three_ways_and_a_token_file() -> None:
    assert len(EXAMPLES) == 4


def test_on_this_machine_no_token_is_needed() -> None:
    assert starts(EXAMPLES[0], token=False)
    assert not gateway(EXAMPLES[0]).auth_optional


def test_on_the_lan_it_does_not_start_without_its_token() -> None:
    assert not starts(EXAMPLES[1], token=False)
    assert starts(EXAMPLES[1], token=True)
    assert gateway(EXAMPLES[1]).auth_optional


def test_a_token_file_is_a_guard_of_its_own() -> None:
    assert starts(EXAMPLES[2], token=False)
    assert not gateway(EXAMPLES[2]).auth_optional
    [entry] = parse(EXAMPLES[3])
    assert (entry.name, entry.tenant, entry.requests_per_s, entry.burst_of()) == ("laptop", "alice", 20, 40)


@pytest.mark.parametrize("example", EXAMPLES[:3])
def test_none_of_them_trusts_a_proxy_or_holds_a_secret(example: str) -> None:
    assert not gateway(example).trust_proxy_auth
    assert "token =" not in example.lower()
