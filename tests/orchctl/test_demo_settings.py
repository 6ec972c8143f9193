"""What the demo decides before it starts anything."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from llorch_ctl import demo_settings, gpu, ports
from llorch_ctl.core.measured import Measured
from llorch_ctl.gpu import GpuSurvey
from llorch_shared.embedded_defaults import DEFAULT_MODEL_REF
from llorch_shared.settings import Settings


@pytest.fixture(autouse=True)
def ports_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "is_free", lambda host, port: True)


def decided(
    monkeypatch: pytest.MonkeyPatch, folder: Path, survey: GpuSurvey, command: tuple[str, ...]
) -> tuple[Settings, str]:
    monkeypatch.setattr(gpu, "survey", lambda: survey)
    monkeypatch.setattr(demo_settings, "gpu_engine_command", lambda: command)
    out = io.StringIO()
    settings = demo_settings.settings_for(folder, Console(file=out, width=300))
    return settings, out.getvalue()


def test_without_a_gpu_it_is_the_marked_carve_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings, said = decided(monkeypatch, tmp_path, GpuSurvey(problem="no driver"), ("/bin/llama-server",))
    assert settings.profile == "ci"
    assert settings.pools[0].devices == "cpu"
    assert settings.pools[0].model == DEFAULT_MODEL_REF
    assert "no driver. Marked `device: cpu` everywhere" in said


def test_a_gpu_with_an_engine_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings, said = decided(monkeypatch, tmp_path, GpuSurvey(names=("RTX",)), ("/bin/llama-server",))
    assert settings.profile == "gpu"
    assert settings.pools[0].devices == (0,)
    assert settings.pools[0].provisioning.command == ("/bin/llama-server",)
    assert "RTX" in said


def test_a_gpu_without_an_engine_for_it_is_not_claimed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings, said = decided(monkeypatch, tmp_path, GpuSurvey(names=("RTX",)), ())
    assert settings.profile == "ci"
    assert settings.pools[0].devices == "cpu"
    assert "computes on the CPU only" in said


def test_taken_ports_are_left_and_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ports, "is_free", lambda host, port: port != 8080)
    settings, said = decided(monkeypatch, tmp_path, GpuSurvey(problem="none"), ())
    assert settings.nats.url.endswith(":4222")
    assert not settings.gateway.addr.endswith(":8080")
    assert "8080 is in use by" in said


def test_settings_of_another_system_do_not_reach_the_demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NATS_URL", "nats://cluster:4222")
    monkeypatch.setenv("ORCHD_ADDR", "0.0.0.0:80")
    monkeypatch.setenv("LLORCH_OFFLINE", "true")
    settings, _ = decided(monkeypatch, tmp_path, GpuSurvey(problem="none"), ())
    assert settings.nats.url == "nats://127.0.0.1:4222"
    assert settings.gateway.addr == "127.0.0.1:8080"
    assert settings.provisioner.offline


def test_what_was_measured_counts_from_sending_to_the_clients_hands() -> None:
    measured = Measured(sent_at=10.0)
    assert (measured.first_token_ms, measured.tokens_per_s) == (0, 0)
    for index in range(5):
        measured.saw("token", {"t": "x", "i": index}, 10.2 + index * 0.1)
    measured.saw("end", {"finish_reason": "stop"}, 11)
    assert measured.first_token_ms == 200
    assert measured.tokens_per_s == 10
    assert measured.end == {"finish_reason": "stop"}
