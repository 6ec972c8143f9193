"""The worked examples of README can be used as they are: they are read, fit the schema and say who may call."""

import json
import shutil
import tomllib
from pathlib import Path

import jsonschema
import pytest

from llorch_gateway.identity import is_guarded
from llorch_shared import settings_loading, token_file
from llorch_shared.auth import NonLoopbackWithoutToken, check_bind
from llorch_shared.settings import Secret, Settings

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = REPOSITORY / "contracts" / "examples" / "config"
SCHEMA = json.loads((REPOSITORY / "contracts" / "config-schema" / "Config.json").read_text())


def example(name: str) -> Settings:
    return settings_loading.load({}, file=EXAMPLES / name)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.name)
def test_every_example_is_in_the_readme_and_fits_what_reads_it(path: Path) -> None:
    assert f"contracts/examples/config/{path.name}" in (REPOSITORY / "README.md").read_text()
    raw = tomllib.loads(path.read_text())
    if path.name != "tokens.toml":
        jsonschema.validate(raw, SCHEMA)
        assert settings_loading.load({}, file=path) != Settings()


def test_the_local_example_serves_this_machine_alone() -> None:
    local = example("local.toml").gateway
    assert (local.addr, local.auth_optional) == ("127.0.0.1:8080", True)
    assert not is_guarded(local, Secret(""))


def test_the_tenants_of_the_lan_example_are_those_of_its_token_file(tmp_path: Path) -> None:
    lan = example("lan-tenants.toml")
    assert is_guarded(lan.gateway, Secret(""))
    assert lan.gateway.tls.cert_file
    tokens = tmp_path / "tokens.toml"
    shutil.copy(EXAMPLES / "tokens.toml", tokens)
    tokens.chmod(0o600)
    entries = token_file.read(tokens)
    assert {entry.tenant for entry in entries} == {tenant.id for tenant in lan.pools[0].admission.fairness.tenants}


def test_the_issuer_example_asks_for_a_certificate_and_a_token() -> None:
    both = example("oidc-mtls.toml").gateway
    assert is_guarded(both, Secret(""))
    assert both.oidc.audience
    assert both.tls.client_ca_file


def test_an_example_for_strangers_does_not_start_without_its_guard() -> None:
    check_bind("0.0.0.0", guarded=True)
    with pytest.raises(NonLoopbackWithoutToken):
        check_bind("0.0.0.0", guarded=False)
