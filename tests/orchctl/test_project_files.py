"""The outside of the project: Makefile, lock file, compose file."""

import importlib.util
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from llorch_ctl.config_file import embedded_pool
from llorch_ctl.embedded import PAYLOAD_BYTES_MAX
from llorch_shared.settings import Settings
from llorch_shared.settings_loading import ENVIRONMENT, SECRET_NAMES
from support.workers import HEAVY, REAL

ROOT = Path(__file__).parents[2]
TARGETS = (
    "help",
    "demo",
    "up",
    "test",
    "test-browser",
    "test-asyncapi",
    "check",
    "contracts",
    "bench",
    "chaos",
    "chaos-long",
    "lock",
    "clean",
)
SECRETS = {variable for name in SECRET_NAMES for variable in (name, f"{name}_FILE")}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return loaded


def test_make_alone_lists_every_target() -> None:
    said = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in TARGETS:
        assert re.search(rf"^  {target} +\S", said, re.MULTILINE), said


def test_make_without_a_python_says_which_one_it_needs(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    for name in ("requirements.lock", "pyproject.toml"):
        (tmp_path / name).touch()
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("make", "bash", "sed", "date", "mktemp"):
        (tools / name).symlink_to(subprocess.check_output(["which", name], text=True).strip())
    said = subprocess.run(
        ["make", "demo"], cwd=tmp_path, env={"PATH": str(tools)}, capture_output=True, text=True, check=False
    )
    assert said.returncode != 0
    assert "needs Python 3.11 or newer" in said.stderr
    assert "apt install python3" in said.stderr


def test_the_lock_pins_everything_by_hash_and_names_no_index() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    assert not re.search(r"^\s*-(-index|-extra|-find|i |f )", lock, re.MULTILINE)
    for block in re.split(r"^(?=\S)", lock, flags=re.MULTILINE)[1:]:
        assert re.match(r"[A-Za-z0-9._-]+==\S+", block), block[:60]
        assert "--hash=sha256:" in block, block[:60]


def test_the_lock_holds_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    build = [line for line in (ROOT / "requirements/build.in").read_text().splitlines() if line[:1].isalpha()]
    extras = [item for items in project["project"]["optional-dependencies"].values() for item in items]
    wanted = {re.split(r"[\[<>=~!; ]", item)[0] for item in [*project["project"]["dependencies"], *extras, *build]}
    locked = set(re.findall(r"^([A-Za-z0-9._-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    assert wanted - {"llama-orch"} <= locked


def test_containers_run_modules_that_exist_with_settings_that_exist(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert set(services) == {
        "nats", "gateway", "scheduler", "provisioner", "poold", "pools", "poold-ci", "pools-ci",
    }  # fmt: skip
    for name, service in services.items():
        command = service["command"]
        if command[:2] == ["python3", "-m"]:
            assert importlib.util.find_spec(command[2]), name
        for variable in service.get("environment", {}):
            assert variable in ENVIRONMENT or variable in SECRETS, f"{name}: {variable}"
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
    assert services["poold"]["profiles"] == ["gpu"]
    assert services["poold-ci"]["environment"]["LLORCH_PROFILE"] == "ci"


def test_the_pool_in_containers_is_the_built_in_one(compose: dict[str, Any]) -> None:
    settings = msgspec.convert(tomllib.loads(compose["configs"]["pools-ci"]["content"]), Settings)
    built_in = msgspec.to_builtins(embedded_pool("default"))
    del built_in["provisioning"]["package"]["sha256"]
    in_compose = msgspec.to_builtins(settings.pools[0])
    del in_compose["provisioning"]["package"]["sha256"]
    assert in_compose == built_in


def test_nats_in_containers_is_brought_back_after_a_full_disk(compose: dict[str, Any]) -> None:
    service = compose["services"]["nats"]
    assert service["command"][:2] == ["orchctl", "bus"]
    assert service["command"][-1] == service["configs"][0]["target"]
    assert "log_file" not in compose["configs"]["nats"]["content"], "its supervisor reads the log"


def test_nats_in_containers_takes_the_same_payloads(compose: dict[str, Any]) -> None:
    assert f"max_payload: {PAYLOAD_BYTES_MAX}" in compose["configs"]["nats"]["content"]
    assert "sync_interval: always" in compose["configs"]["nats"]["content"]


def test_the_test_files_that_never_run_side_by_side_exist() -> None:
    assert [file for file in (*HEAVY, *REAL) if not (ROOT / file).is_file()] == []
