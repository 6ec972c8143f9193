"""`orchctl bus-users`: seeds that stay, a configuration that follows."""

import json
import shutil
from pathlib import Path
from typing import Any

import nkeys
from typer.testing import CliRunner

from llorch_ctl.cli import app
from llorch_ctl.exits import Exit, Problem


def written(folder: Path, *arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["bus-users", str(folder), "--json", *arguments])
    assert result.exit_code == Exit.OK, result.output
    told: dict[str, Any] = json.loads(result.output)
    return told


def refused(folder: Path, *arguments: str) -> Problem:
    result = CliRunner().invoke(app, ["bus-users", str(folder), *arguments])
    assert isinstance(result.exception, Problem), result.output
    return result.exception


def test_seeds_stay_and_what_is_new_is_added(tmp_path: Path) -> None:
    folder = tmp_path / "users"
    assert len(written(folder, "--node", "a")["new"]) == 6
    seeds = {path: path.read_bytes() for path in folder.glob("*/seed.nk")}
    told = written(folder, "--node", "a", "--node", "b", "--node", "b", "--tenant", "acme")
    assert told["new"] == ["poold-b", "provisioner-b", "tenant-acme"]
    assert all(path.read_bytes() == seed for path, seed in seeds.items())
    config = (folder / "users.conf").read_text()
    for path in folder.glob("*/seed.nk"):
        assert path.stat().st_mode & 0o777 == 0o600
        seed = path.read_bytes().strip()
        assert seed.decode() not in config
        assert config.count(nkeys.from_seed(bytearray(seed)).public_key.decode()) == 1
    again = written(folder)
    assert again["new"] == []
    assert set(again["users"]) == {path.parent.name for path in folder.glob("*/seed.nk")}
    assert (folder / "users.conf").read_text() == config


def test_who_has_no_seed_any_more_is_no_user_any_more(tmp_path: Path) -> None:
    folder = tmp_path / "users"
    written(folder, "--node", "a", "--node", "b", "--tenant", "acme")
    for name in ("poold-a", "provisioner-a", "tenant-acme"):
        shutil.rmtree(folder / name)
    assert not {"poold-a", "provisioner-a", "tenant-acme"} & set(written(folder)["users"])
    assert "TENANT_acme" not in (folder / "users.conf").read_text()
    shutil.rmtree(folder / "poold-b")
    assert written(folder)["new"] == ["poold-b"]


def test_the_server_is_told_without_being_shown_a_seed(tmp_path: Path) -> None:
    config = tmp_path / "bus" / "users.conf"
    config.parent.mkdir()
    assert written(tmp_path / "users", "--config", str(config))["config"] == str(config)
    assert "nkey" in config.read_text()
    assert not list(tmp_path.glob("users/*.conf"))


def test_what_cannot_be_used_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "users"
    assert refused(folder, "--node", "Node.1").exit_code == Exit.USAGE
    assert refused(folder, "--tenant", "a b").exit_code == Exit.USAGE
    written(folder)
    before = (folder / "users.conf").read_text()
    (folder / "gateway" / "seed.nk").write_text("not a seed")
    problem = refused(folder)
    assert "gateway" in problem.message
    assert problem.fix
    assert (folder / "users.conf").read_text() == before
    (tmp_path / "file").touch()
    assert "cannot write" in refused(tmp_path / "file" / "users").message
