"""`orchctl bus-users`: seeds that stay, a configuration that follows."""

import json
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
    assert written(folder, "--node", "b")["left_out"] == ["poold-a", "provisioner-a", "tenant-acme"]
    assert "TENANT_acme" not in (folder / "users.conf").read_text()


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
