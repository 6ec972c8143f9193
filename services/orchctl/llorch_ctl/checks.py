"""What `orchctl doctor` looks at. Each check answers with what it found and, when that is a lack, how to mend it."""

import os
import platform
import shutil
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec
import psutil

from llorch_ctl import gpu, ports
from llorch_ctl.embedded import ServerMissing, server_binary, server_version
from llorch_ctl.gpu_engine import gpu_engine_command
from llorch_ctl.system import nats_is_embedded
from llorch_shared.embedded_defaults import DEFAULT_ENGINE_PACKAGE
from llorch_shared.settings import Settings, SettingsError
from llorch_shared.settings_loading import load

PYTHON_MIN: Final = (3, 11)
DISK_FREE_MIN_MB: Final = 2048
"""The built-in engine and model take 0.5 GB with their wheels; the rest is for queues and logs."""
MEMORY_FREE_MIN_MB: Final = 1024
INDEX_WITHIN_S: Final = 60


class Verdict(StrEnum):
    OK = "ok"
    NOTE = "note"
    LACK = "lack"


class Check(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    name: str
    verdict: Verdict
    found: str
    fix: str = ""


def all_checks(config: Path | None, state_dir: Path | None) -> list[Check]:
    """Every check, in the order in which lacks should be mended. Never raises."""
    settings, config_check = _config(config, state_dir)
    return [
        _python(),
        config_check,
        _disk(settings.state_path()),
        _memory(),
        *_ports(settings),
        _nats_server(),
        _gpu(settings),
        _gpu_engine(),
        _package_index(),
        _docker(),
    ]


def _python() -> Check:
    found = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info >= PYTHON_MIN:
        return Check(name="python", verdict=Verdict.OK, found=found)
    return Check(name="python", verdict=Verdict.LACK, found=found, fix="install Python 3.11 or newer")


def _config(path: Path | None, state_dir: Path | None) -> tuple[Settings, Check]:
    named = path or os.environ.get("LLORCH_CONFIG")
    try:
        settings = load(file=path, flags={"state_dir": str(state_dir)} if state_dir else None)
    except SettingsError as error:
        return Settings(), Check(name="config", verdict=Verdict.LACK, found=str(error), fix="orchctl config example")
    where = f"{named} (pools defined: {len(settings.pools)})" if named else "no config file; defaults and environment"
    return settings, Check(name="config", verdict=Verdict.OK, found=where)


def _disk(path: Path) -> Check:
    present = next(parent for parent in (path, *path.parents) if parent.exists())
    free_mb = shutil.disk_usage(present).free // 1024**2
    found = f"{free_mb} MB free at {path}"
    if not os.access(present, os.W_OK):
        fix = f"orchctl up --state-dir <a folder you may write>, or chown {os.getuid()} {present}"
        return Check(name="disk", verdict=Verdict.LACK, found=f"{present} cannot be written", fix=fix)
    if free_mb < DISK_FREE_MIN_MB:
        fix = f"free {DISK_FREE_MIN_MB - free_mb} MB, or use another disk with --state-dir"
        return Check(name="disk", verdict=Verdict.LACK, found=found, fix=fix)
    return Check(name="disk", verdict=Verdict.OK, found=found)


def _memory() -> Check:
    free_mb = psutil.virtual_memory().available // 1024**2
    found = f"{free_mb} MB available, {os.cpu_count()} CPUs"
    if free_mb < MEMORY_FREE_MIN_MB:
        return Check(name="memory", verdict=Verdict.NOTE, found=found, fix="end what is not needed: top -o %MEM")
    return Check(name="memory", verdict=Verdict.OK, found=found)


def _ports(settings: Settings) -> list[Check]:
    wanted = [("port (http)", settings.gateway.addr, "ORCHD_ADDR=127.0.0.1:<port>")]
    if nats_is_embedded(settings):
        wanted.append(("port (bus)", urlsplit(settings.nats.url).netloc, "NATS_URL=nats://127.0.0.1:<port>"))
    checks = []
    for name, address, elsewhere in wanted:
        try:
            host, port = ports.split(address.rpartition("@")[2])
        except ValueError:
            found = f"{address!r} is not host:port"
            checks.append(Check(name=name, verdict=Verdict.LACK, found=found, fix=f"set {elsewhere}"))
            continue
        if port == 0 or ports.is_free(host, port):
            checks.append(Check(name=name, verdict=Verdict.OK, found=f"{host}:{port} is free"))
        else:
            found = f"{host}:{port} is in use by {ports.owner(port)}"
            fix = f"if that is llama-orch, all is well; else stop it, or set {elsewhere}"
            checks.append(Check(name=name, verdict=Verdict.NOTE, found=found, fix=fix))
    return checks


def _nats_server() -> Check:
    try:
        binary = server_binary()
    except ServerMissing as error:
        return Check(
            name="nats-server",
            verdict=Verdict.LACK,
            found=str(error),
            fix="make demo, or pip install -r requirements.lock",
        )
    return Check(name="nats-server", verdict=Verdict.OK, found=f"{server_version()} at {binary}")


def _gpu(settings: Settings) -> Check:
    survey = gpu.survey()
    if not survey.problem:
        return Check(name="gpu", verdict=Verdict.OK, found=f"{', '.join(survey.names)} (driver {survey.driver})")
    fix = "install the NVIDIA driver (check with: nvidia-smi); without one: make demo, on the CPU"
    verdict = Verdict.NOTE if settings.profile == "ci" else Verdict.LACK
    return Check(name="gpu", verdict=verdict, found=f"none: {survey.problem}", fix=fix)


def _gpu_engine() -> Check:
    if command := gpu_engine_command():
        return Check(name="llama-server", verdict=Verdict.OK, found=command[0])
    fix = "put a llama-server built for your GPU on PATH, or name one in [pools.provisioning] command"
    return Check(
        name="llama-server",
        verdict=Verdict.NOTE,
        found="none on PATH; the built-in engine computes on the CPU",
        fix=fix,
    )


def _package_index() -> Check:
    """Ask pip where it would get the built-in engine, which is what the provisioner does on a first start."""
    package = f"{DEFAULT_ENGINE_PACKAGE.name}=={DEFAULT_ENGINE_PACKAGE.version}"
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--dry-run", "--ignore-installed"]
    command += ["--quiet", "--no-deps", "--retries", "1", "--only-binary", ":all:", package]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=INDEX_WITHIN_S, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        said = None
    if said is not None and said.returncode == 0:
        return Check(name="package index", verdict=Verdict.OK, found=f"pip finds {package}")
    reason = (said.stderr.strip().splitlines() or ["no answer"])[-1] if said else f"no answer within {INDEX_WITHIN_S} s"
    fix = "check pip's index, proxy and certificate settings: python -m pip config list. Not needed once all is cached"
    return Check(name="package index", verdict=Verdict.NOTE, found=f"pip does not find {package}: {reason}", fix=fix)


def _docker() -> Check:
    if found := shutil.which("docker"):
        return Check(name="docker", verdict=Verdict.OK, found=found)
    return Check(name="docker", verdict=Verdict.OK, found="none; only compose.yaml and container engines need it")
