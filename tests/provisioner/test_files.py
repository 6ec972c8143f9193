"""Files: hashed, staged, swept, moved at once or not at all."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest

from llorch_provisioner.adapters import files
from llorch_provisioner.cache import Cache
from llorch_provisioner.core.failure import Failure
from support.fake_wheels import noise, sha256


def test_a_file_is_hashed_and_its_bytes_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(noise(3 * files.CHUNK_BYTES + 5))
    told: list[tuple[int, int]] = []
    assert files.sha256_of(path, lambda done, total: told.append((done, total))) == sha256(path)
    assert told[-1] == (path.stat().st_size, path.stat().st_size)
    assert len(told) == 4


def test_a_relative_path_may_not_leave_its_folder_by_a_link(tmp_path: Path) -> None:
    folder, outside = tmp_path / "models", tmp_path / "outside.gguf"
    folder.mkdir()
    outside.write_bytes(b"x")
    (folder / "inside.gguf").write_bytes(b"y")
    (folder / "near").symlink_to(folder / "inside.gguf")
    (folder / "out").symlink_to(outside)
    (folder / "up").symlink_to(tmp_path)
    assert files.inside(folder, PurePosixPath("near")) == folder / "inside.gguf"
    for path in ("out", "up/outside.gguf"):
        with pytest.raises(Failure, match="leads out of"):
            files.inside(folder, PurePosixPath(path))


def test_what_is_not_a_regular_file_is_no_model(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("pipe", "loop", "missing", "."):
        with pytest.raises(Failure):
            files.regular_file(tmp_path / name)


def test_staging_is_gone_afterwards_whatever_happens(tmp_path: Path) -> None:
    with files.staging(tmp_path, "a") as stage:
        (stage / "deep").mkdir()
        (stage / "deep" / "file").write_bytes(b"x")
    with pytest.raises(RuntimeError), files.staging(tmp_path, "b"):
        raise RuntimeError
    assert list((tmp_path / files.STAGING).iterdir()) == []


def test_a_sweep_takes_what_dead_processes_left_and_spares_what_is_in_use(tmp_path: Path) -> None:
    left = tmp_path / files.STAGING / "llm-dead"
    left.mkdir(parents=True)
    (left / "half.whl").write_bytes(b"x")
    with files.staging(tmp_path, "alive") as stage:
        assert files.sweep(tmp_path) == 1
        assert stage.is_dir()
        assert not left.exists()


def test_a_file_replaces_an_older_one_at_once(tmp_path: Path) -> None:
    staged, final = tmp_path / "new", tmp_path / "deep" / "model.gguf"
    final.parent.mkdir()
    final.write_bytes(b"old")
    staged.write_bytes(b"new")
    with final.open("rb") as reader:
        files.move_file(staged, final)
        assert reader.read() == b"old"
    assert final.read_bytes() == b"new"
    assert not staged.exists()


def test_a_full_disk_is_refused_before_it_is_filled(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="MiB free") as failure:
        files.require_space(tmp_path, 1 << 60)
    assert "cache_dir" in failure.value.hint


def test_a_cache_has_one_owner_and_a_killed_one_does_not_keep_it(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    with pytest.raises(Failure, match="another provisioner uses"):
        Cache(tmp_path / "cache")
    cache.close()
    hold = (
        "import sys, pathlib; from llorch_provisioner.cache import Cache;"
        "c = Cache(pathlib.Path(sys.argv[1])); print('mine', flush=True); sys.stdin.read()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path / "cache")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"mine\n"
    with pytest.raises(Failure, match="another provisioner uses"):
        Cache(tmp_path / "cache")
    owner.kill()
    owner.communicate()
    Cache(tmp_path / "cache").close()


def test_a_cache_that_cannot_be_a_folder_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Failure, match="cannot create") as failure:
        Cache(tmp_path / "file" / "cache")
    assert "cache_dir" in failure.value.hint


def test_staging_is_locked_while_in_use(tmp_path: Path) -> None:
    with files.staging(tmp_path, "a") as stage:
        handle = os.open(stage, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(handle)
