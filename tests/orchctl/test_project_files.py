"""The outside of the project: Makefile, lock file, compose file."""

import importlib.util
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from llorch_ctl.bus_seeds import SEED
from llorch_ctl.embedded import PAYLOAD_BYTES_MAX
from llorch_shared import bus_users
from llorch_shared.settings_loading import ENVIRONMENT, SECRET_NAMES
from support.compose import mounts
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
        "bus-users", "nats", "gateway", "scheduler", "provisioner", "poold", "pools", "provisioner-ci", "poold-ci",
        "pools-ci", "orchctl",
    }  # fmt: skip
    for name, service in services.items():
        command = service.get("command", service.get("entrypoint"))
        if command[:2] == ["python3", "-m"]:
            assert importlib.util.find_spec(command[2]), name
        for variable in service.get("environment", {}):
            assert variable in ENVIRONMENT or variable in SECRETS, f"{name}: {variable}"
        # Compose writes a secret that it has from its environment into the container: that must be one to write to.
        assert service["read_only"] is not bool(service.get("secrets")), name
        assert service["cap_drop"] == ["ALL"]
    assert all("content" not in config for config in compose["configs"].values())
    for name in ("provisioner", "poold"):
        assert services[name]["profiles"] == ["gpu"]
        assert services[f"{name}-ci"]["environment"]["LLORCH_PROFILE"] == "ci"


def test_each_container_sees_the_seed_of_its_own_user_of_the_bus_alone(compose: dict[str, Any]) -> None:
    services = compose["services"]
    made = mounts(services["bus-users"])
    assert services["bus-users"]["network_mode"] == "none"
    users = {user.name for user in bus_users.services(["node-1"])}
    for name, service in services.items():
        if name == "bus-users":
            continue
        seen = {target: volume for target, volume in mounts(service).items() if target.startswith(("/users", "/bus"))}
        assert all(f"{volume}:{target}:ro" in service["volumes"] for target, volume in seen.items()), name
        assert seen.items() <= made.items(), name
        if name == "nats":
            assert set(seen) == {"/bus"}
            continue
        (target,) = seen
        assert Path(target).name in users, name
        assert service["environment"]["NATS_NKEY_SEED_FILE"] == f"{target}/{SEED}", name
        assert not {"NATS_USER", "NATS_PASSWORD", "NATS_PASSWORD_FILE"} & service["environment"].keys()


def test_volumes_belong_to_the_user_of_the_image(compose: dict[str, Any]) -> None:
    """A new volume gets the owner of the folder that the image has there, and root where it has none."""
    (outer, inner, owned) = re.search(
        r"RUN mkdir -m 700 (.*) && cd /users \\\n && mkdir -m 700 (.*) && chown -R 1000:1000 (.*)",
        (ROOT / "Dockerfile").read_text(),
    ).groups()  # type: ignore[union-attr]
    folders = {*outer.split(), *(f"/users/{name}" for name in inner.split())}
    assert owned == outer
    assert folders == {target for service in compose["services"].values() for target in mounts(service)}


def test_nats_in_containers_is_brought_back_after_a_full_disk(compose: dict[str, Any]) -> None:
    assert compose["services"]["nats"]["command"] == ["orchctl", "bus", "--json-logs", "/nats.conf"]
    assert "log_file" not in (ROOT / "nats.conf").read_text(), "its supervisor reads the log"


def test_nats_in_containers_takes_the_same_payloads() -> None:
    config = (ROOT / "nats.conf").read_text()
    assert f"max_payload: {PAYLOAD_BYTES_MAX}" in config
    assert "sync_interval: always" in config


def test_the_test_files_that_never_run_side_by_side_exist() -> None:
    assert [file for file in (*HEAVY, *REAL) if not (ROOT / file).is_file()] == []
