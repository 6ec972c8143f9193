"""GPUs through the real pynvml on a fake driver library; an absent driver is an answer."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from llorch_shared.wire.registry import Gpu

PROBE = """
import dataclasses, msgspec, sys
from llorch_poold.gpu.nvml import Nvml
nvml = Nvml()
nvml.read()
sys.stdout.buffer.write(msgspec.json.encode(dataclasses.asdict(nvml.read()), enc_hook=msgspec.to_builtins))
nvml.close()
"""


class Report(msgspec.Struct):
    gpus: tuple[Gpu, ...]
    driver: str
    problem: str


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with libnvidia-ml.so.1; a machine without gcc fails here and says so."""
    folder = tmp_path_factory.mktemp("nvml")
    source = Path(__file__).with_name("fake_nvml.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", str(folder / "libnvidia-ml.so.1"), str(source)], check=True)
    return folder


def read(folder: Path | None, **faults: str) -> Report:
    environment = {**os.environ, **faults}
    environment["LD_LIBRARY_PATH"] = str(folder or "")
    done = subprocess.run([sys.executable, "-c", PROBE], env=environment, check=True, capture_output=True)
    return msgspec.json.decode(done.stdout, type=Report)


def test_a_driver_tells_its_gpus(driver: Path) -> None:
    report = read(driver)
    assert (report.driver, report.problem) == ("570.00", "")
    assert [gpu.uuid for gpu in report.gpus] == ["GPU-one", "GPU-two"]
    first = report.gpus[0]
    assert (first.vram_total_mb, first.vram_free_mb, first.utilization_percent) == (131_072, 102_400, 42)
    assert (first.compute_capability, first.fault) == ("9.0", "")


def test_a_driver_that_is_not_loaded_is_a_problem_with_a_name(driver: Path) -> None:
    report = read(driver, FAKE_NVML_NODRIVER="1")
    assert report.gpus == ()
    assert report.problem == "the NVIDIA driver is installed but not loaded"


def test_a_driver_without_cards_is_a_problem(driver: Path) -> None:
    assert read(driver, FAKE_NVML_EMPTY="1").problem == "the NVIDIA driver sees no GPU"


def test_a_lost_gpu_is_told_with_its_fault(driver: Path) -> None:
    report = read(driver, FAKE_NVML_LOST="1")
    assert [gpu.fault for gpu in report.gpus] == ["", "lost"]
    assert report.problem == ""


def test_an_xid_stays_a_fault_after_it_was_told_once(driver: Path) -> None:
    assert [gpu.fault for gpu in read(driver, FAKE_NVML_XID="79").gpus] == ["", "Xid 79"]


def test_an_xid_that_an_application_caused_is_no_fault(driver: Path) -> None:
    assert [gpu.fault for gpu in read(driver, FAKE_NVML_XID="13").gpus] == ["", ""]


def test_uncorrected_memory_errors_are_a_fault(driver: Path) -> None:
    assert [gpu.fault for gpu in read(driver, FAKE_NVML_ECC="1").gpus] == ["7 uncorrected ECC errors", ""]


def test_a_machine_without_the_library_is_a_problem_with_a_name(tmp_path: Path) -> None:
    """An empty file in the library's place stands for any machine, with or without a driver."""
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"")
    report = read(tmp_path)
    assert report.gpus == ()
    assert "libnvidia-ml.so.1" in report.problem
