"""How settings are read. Precedence: command line, environment, file, default.

The file is TOML; unknown keys are refused. Secrets come from the environment or from files, never from argv. Nothing
else in the code reads the environment.
"""

import logging
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from llorch_shared.pool_spellings import BadSpelling, in_one_spelling
from llorch_shared.settings import Secret, Settings, SettingsError
from llorch_shared.settings_keys import unknown_keys, without

log = logging.getLogger(__name__)

ENVIRONMENT: Final[Mapping[str, tuple[str, ...]]] = {
    "LLORCH_UNKNOWN_KEYS": ("unknown_keys",),
    "LLORCH_PROFILE": ("profile",),
    "LLORCH_STATE_DIR": ("state_dir",),
    "LLORCH_LOG_FORMAT": ("log_format",),
    "LLORCH_LOG_LEVEL": ("log_level",),
    "NATS_URL": ("nats", "url"),
    "NATS_NKEY_SEED_FILE": ("nats", "nkey_seed_file"),
    "NATS_CREDS_FILE": ("nats", "creds_file"),
    "NATS_USER": ("nats", "user"),
    "NATS_INBOX_PREFIX": ("nats", "inbox_prefix"),
    "NATS_REPLICAS": ("nats", "replicas"),
    "BIND_ADDR": ("gateway", "addr"),
    "ORCHD_ADDR": ("gateway", "addr"),
    "LLORCH_TOKENS_FILE": ("gateway", "tokens_file"),
    "AUTH_OPTIONAL": ("gateway", "auth_optional"),
    "TRUST_PROXY_AUTH": ("gateway", "trust_proxy_auth"),
    "CANCEL_ON_DISCONNECT": ("gateway", "cancel_on_disconnect"),
    "ORCHD_SSE_HEARTBEAT_MS": ("gateway", "sse_heartbeat_ms"),
    "ORCHD_SSE_MICROBATCH": ("gateway", "sse_microbatch"),
    "ORCHD_SSE_LOGS_ENABLED": ("gateway", "sse_logs_enabled"),
    "ORCHD_SSE_LOGS_PERIOD_MS": ("gateway", "sse_logs_period_ms"),
    "ORCHD_PREFER_H2": ("gateway", "prefer_h2"),
    "LLORCH_GATEWAY_DRAIN_MS": ("gateway", "drain_ms"),
    "LLORCH_NODE_ID": ("poold", "node_id"),
    "LLORCH_CACHE_DIR": ("provisioner", "cache_dir"),
    "LLORCH_OFFLINE": ("provisioner", "offline"),
    "LLORCH_SCHEDULER_METRICS_ADDR": ("scheduler", "metrics_addr"),
    "LLORCH_POOLD_METRICS_ADDR": ("poold", "metrics_addr"),
    "LLORCH_PROVISIONER_METRICS_ADDR": ("provisioner", "metrics_addr"),
}
"""Environment names (REQUIREMENTS section 3) and the key each one sets; of two names for one key the later one counts.
`LLORCH_CONFIG` names the file."""

CHANNEL_CAP: Final = "ORCHD_SSE_CHANNEL_CAP"
CHANNEL_EVENT_BYTES: Final = 8 * 1024
"""Buffers are bounded in bytes here. The name counts events: its 32 are the default of `sse_buffer_bytes`."""
SAME_ENGINE: Final = "ORCH_REQUIRE_SAME_ENGINE"
"""Sets `require_same_engine_version` of the pools that do not say it."""

SECRET_NAMES: Final = ("AUTH_TOKEN", "NATS_PASSWORD", "LLORCH_API_TOKEN")


def load(
    environment: Mapping[str, str] | None = None,
    *,
    file: Path | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Settings:
    """Merge file, environment and flags. `flags` is nested like the file. Raises SettingsError."""
    environment = os.environ if environment is None else environment
    path = file or (Path(environment["LLORCH_CONFIG"]) if environment.get("LLORCH_CONFIG") else None)
    merged: dict[str, Any] = {}
    if path is not None:
        try:
            merged = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise SettingsError(f"cannot read the config file {path}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError(f"{path} is not valid TOML: {error}") from error
    where = f" in {path}, the environment or the flags" if path else " in the environment or the flags"
    for name, keys in ENVIRONMENT.items():
        if value := environment.get(name):
            _set(merged, keys, value)
    if cap := environment.get(CHANNEL_CAP):
        _set(merged, ("gateway", "sse_buffer_bytes"), _cap_bytes(cap))
    _merge(merged, flags or {})
    _pools(merged, environment.get(SAME_ENGINE, ""), where)
    if unknown := unknown_keys(merged, Settings):
        named = ", ".join(map(str, unknown))
        if merged.get("unknown_keys") != "log":
            raise SettingsError(f"bad setting{where}: unknown {'keys' if len(unknown) > 1 else 'key'} {named}")
        log.warning("unknown keys%s are passed over: %s", where, named)
        without(merged, unknown)
    try:
        settings = msgspec.convert(merged, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(f"bad setting{where}: {error}") from error
    seen: set[str] = set()
    for pool in settings.pools:
        if pool.id in seen:
            raise SettingsError(f"pool {pool.id!r} is defined twice")
        seen.add(pool.id)
    return settings


def _pools(merged: dict[str, Any], same_engine: str, where: str) -> None:
    """Pools in the one spelling, with what the environment says of all of them."""
    pools = merged.get("pools")
    if not isinstance(pools, list):
        return
    for number, pool in enumerate(pools):
        if not isinstance(pool, Mapping):
            continue
        try:
            pools[number] = plain = in_one_spelling(pool)
        except BadSpelling as error:
            raise SettingsError(f"bad setting{where}: {error} - at `$.pools[{number}]`") from error
        if same_engine:
            plain.setdefault("require_same_engine_version", _word(same_engine))


def _cap_bytes(cap: str) -> str:
    if not cap.isdigit():
        raise SettingsError(f"bad setting in the environment: {CHANNEL_CAP} is a number of events, not {cap!r}")
    return str(int(cap) * CHANNEL_EVENT_BYTES)


def secret(name: str, environment: Mapping[str, str] | None = None) -> Secret:
    """A secret from `NAME` or from the file that `NAME_FILE` points to."""
    if name not in SECRET_NAMES:
        raise SettingsError(f"{name} is not a known secret")
    environment = os.environ if environment is None else environment
    if path := environment.get(f"{name}_FILE"):
        try:
            return Secret(Path(path).read_text(encoding="utf-8").strip())
        except OSError as error:
            raise SettingsError(f"cannot read {name}_FILE: {error.strerror}") from error
    return Secret(environment.get(name, ""))


def _set(target: dict[str, Any], keys: tuple[str, ...], value: str) -> None:
    for key in keys[:-1]:
        target = _section(target, key)
    target[keys[-1]] = _word(value)


def _word(value: str) -> bool | str:
    return {"true": True, "false": False}.get(value.lower(), value)


def _merge(target: dict[str, Any], source: Mapping[str, Any]) -> None:
    for key, value in source.items():
        if isinstance(value, Mapping):
            _merge(_section(target, key), value)
        elif value is not None:
            target[key] = value


def _section(target: dict[str, Any], key: str) -> dict[str, Any]:
    section = target.setdefault(key, {})
    if not isinstance(section, dict):
        raise SettingsError(f"bad setting: {key} is a section with keys of its own, not a value")
    return section
