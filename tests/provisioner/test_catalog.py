"""The index files: read again, removed from, refused when unknown or damaged."""

from pathlib import Path

import msgspec
import pytest

from llorch_provisioner.adapters.catalog import EngineEntry, ModelEntry, engine_index, model_index
from llorch_provisioner.core.failure import Failure
from llorch_shared.wire.provision import PreparedEngine
from llorch_shared.wire.task import Engine


def model(name: str, *, path: str = "", created_ms: int = 1) -> ModelEntry:
    return ModelEntry(
        id=name,
        model_ref=name,
        local_path=path or f"/m/{name}",
        size_bytes=3,
        mtime_ns=4,
        digest="sha256:x",
        created_ms=created_ms,
    )


def test_what_was_put_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "models.json"
    index = model_index(path)
    index.put(model("a"))
    index.put(model("b"))
    index.put(model("a", created_ms=9))
    again = model_index(path)
    assert {(entry.id, entry.created_ms) for entry in again.all()} == {("a", 9), ("b", 1)}
    assert [found.name for found in tmp_path.iterdir()] == ["models.json"]


def test_an_engine_keeps_its_facts(tmp_path: Path) -> None:
    prepared = PreparedEngine(engine=Engine.LLAMACPP, mode="package", entry=("/p",), engine_version="x 1")
    entry = EngineEntry(
        id="e",
        engine="llamacpp",
        version="1",
        created_ms=5,
        build_ref="pypi:x==1",
        artifacts=("/e",),
        prepared=prepared,
    )
    engine_index(tmp_path / "engines.json").put(entry)
    assert engine_index(tmp_path / "engines.json").all() == (entry,)
    facts = msgspec.json.decode((tmp_path / "engines.json").read_bytes())
    wanted = {"id", "engine", "version", "build_ref", "digest", "build_flags", "artifacts", "created_ms"}
    assert wanted <= facts["entries"][0].keys()


def test_deleting_keeps_the_index_sane(tmp_path: Path) -> None:
    path = tmp_path / "models.json"
    index = model_index(path)
    for name in ("a", "b"):
        index.put(model(name))
    index.remove(model("a"))
    index.remove(model("a"))
    assert [entry.id for entry in model_index(path).all()] == ["b"]


def test_one_model_may_lie_in_two_folders_and_the_newest_is_found(tmp_path: Path) -> None:
    index = model_index(tmp_path / "models.json")
    index.put(model("a", path="/one", created_ms=2))
    index.put(model("a", path="/two", created_ms=1))
    found = index.find(lambda entry: entry.id == "a")
    assert found is not None
    assert found.local_path == "/one"
    assert index.find(lambda entry: entry.id == "z") is None


def test_another_schema_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "models.json"
    path.write_text('{"version": 2, "entries": [{"of": "another shape"}]}')
    with pytest.raises(Failure, match="schema version 2, this release knows 1"):
        model_index(path)
    assert "another shape" in path.read_text()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1}', '{"version": 1, "entries": [{"id": 3}]}'])
def test_a_damaged_index_is_refused_with_a_remedy(tmp_path: Path, text: str) -> None:
    path = tmp_path / "engines.json"
    path.write_text(text)
    with pytest.raises(Failure, match="is damaged") as failure:
        engine_index(path)
    assert "move" in failure.value.hint
