"""Settings: one frozen Struct, read once, passed down. Precedence: command line, environment, file, default.

The file is TOML with the keys below (`[gateway] addr = …`, `[[pools]] …`); unknown keys are refused. Secrets come from
the environment or from files, never from argv. Nothing else in the code reads the environment.
"""

import logging
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from llorch_shared.pool_spellings import BadSpelling, in_one_spelling
from llorch_shared.settings_keys import unknown_keys, without
from llorch_shared.wire.catalog import TrustPolicy
from llorch_shared.wire.session import SessionsSpec
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Name

log = logging.getLogger(__name__)


class SettingsError(ValueError):
    """A setting is missing or wrong; the message names the key and what to do."""


class Secret:
    """A value that must not be shown. `reveal()` is called at the one place that needs it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __repr__(self) -> str:
        return "Secret(***)" if self._value else "Secret(unset)"


class NatsTlsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """TLS to the bus, for `tls://` addresses or a server that asks for it; PEM files, read at the start."""

    ca_file: str = ""
    """Who may have signed the server's certificate. Empty: whom this machine trusts."""
    cert_file: str = ""
    """What is shown to a server that asks callers for a certificate."""
    key_file: str = ""


class NatsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    url: str = "nats://127.0.0.1:4222"
    """Comma-separated servers."""
    nkey_seed_file: str = ""
    creds_file: str = ""
    user: str = ""
    tls: NatsTlsSettings = NatsTlsSettings()
    replicas: Annotated[int, Meta(ge=1, le=5)] = 1
    """Copies of every stream: 1 on one server, 3 in a cluster, so that it loses nothing with one of its servers."""
    token_bytes_max: Annotated[int, Meta(ge=16 * 1024 * 1024)] = 256 * 1024 * 1024
    """Memory for token streams that can still be resumed, bytes; the oldest go first."""


class TlsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """TLS of the gateway's port; PEM files, read at the start."""

    cert_file: str = ""
    """Certificate with its chain. Empty: no TLS, which is right on loopback and behind a proxy that speaks it."""
    key_file: str = ""
    client_ca_file: str = ""
    """Callers must show a certificate that this authority has signed, beside their token."""


class OidcSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """JSON web tokens of an OpenID issuer, accepted beside the other tokens."""

    issuer: str = ""
    """As tokens name it in `iss`, an https:// URL. Empty: no such token is accepted."""
    audience: str = ""
    """What tokens for this gateway name in `aud`; there is none to guess."""
    jwks_url: str = ""
    """Where the issuer's public keys are; empty asks `<issuer>/.well-known/openid-configuration`."""
    tenant_claim: str = "tenant"
    """Claim whose value is the caller's tenant; a token without it is refused."""
    leeway_ms: Annotated[int, Meta(ge=0, le=300_000)] = 30_000
    """How far the issuer's clock may be from ours."""
    keys_max_age_ms: Annotated[int, Meta(ge=10_000)] = 3_600_000
    """Keys read so long ago are read again, so that one that the issuer has taken back is not good for ever."""
    requests_per_s: Annotated[float, Meta(gt=0)] | None = None
    """Limits of each subject (`sub`), as in the token file."""
    burst: Annotated[int, Meta(ge=1)] = 20
    streams_max: Annotated[int, Meta(ge=1)] | None = None


class GatewaySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    addr: str = "127.0.0.1:8080"
    workers: Annotated[int, Meta(ge=1, le=64)] = 1
    """Gateway processes that `orchctl up` starts on the one port, one core each; the kernel spreads connections."""
    auth_optional: bool = False
    """Loopback peers may omit the token (AUTH-1004)."""
    trust_proxy_auth: bool = False
    cancel_on_disconnect: bool = True
    cancel_grace_ms: Annotated[int, Meta(ge=0)] = 10_000
    """How long a stream that had a reader waits for one to come back before its task is cancelled."""
    sse_heartbeat_ms: Annotated[int, Meta(ge=0)] = 15_000
    """A comment line after this much silence, so that proxies keep the connection; 0 is off."""
    sse_microbatch: bool = False
    """Tokens that come within 20 ms of each other leave in one write: fewer packets and less CPU for a delay that
    people do not see. Events stay one per token."""
    sse_logs_enabled: bool = True
    """`narration` events while a task waits, for people who watch a stream."""
    sse_logs_period_ms: Annotated[int, Meta(ge=0)] = 0
    """At most one of them in this time; 0 tells each change, of which there is one in two seconds at most."""
    sse_buffer_bytes: Annotated[int, Meta(ge=16 * 1024)] = 256 * 1024
    """Unsent bytes per connection before it is served from the token stream at its own pace."""
    sse_stall_ms: Annotated[int, Meta(ge=1000)] = 30_000
    """A reader that takes nothing of what is sent to it for so long is disconnected, and may resume: a seat and its
    buffers are not kept for who has gone to sleep."""
    prefer_h2: bool = True
    """HTTP/2 beside HTTP/1 on the one port: by ALPN with TLS, else for clients that begin with it. False serves HTTP/1
    alone, for what stands before the gateway and speaks HTTP/2 badly."""
    body_bytes_max: Annotated[int, Meta(ge=1024, le=16 * 1024 * 1024)] = 16 * 1024 * 1024
    """Largest request body, bytes. What no bus message could hold travels by reference (object store)."""
    streams_max: Annotated[int, Meta(ge=1)] = 4096
    """Open streams per gateway process; one more is refused with 503."""
    cancel_wait_ms: Annotated[int, Meta(ge=1)] = 5_000
    """How long a cancel waits for its receipt before it answers 202 instead of 204."""
    drain_ms: Annotated[int, Meta(ge=0)] = 5_000
    """How long a gateway that was told to stop goes on serving while /readyz says 503: longer than it takes whoever
    spreads the requests to notice, which looks every second or two. 0 where nobody does."""
    body_read_ms: Annotated[int, Meta(ge=100)] = 30_000
    """How long a request body may take to arrive whole before it is answered 408: a megabyte at 40 KB/s."""
    header_read_ms: Annotated[int, Meta(ge=100)] = 10_000
    """How long an HTTP/1 connection waits for the headers of its next request to be whole, then it is closed: slow
    and idle clients must not hold connections."""
    cors_origins: tuple[str, ...] = ()
    """Origins (`https://host:port`) of web pages that may call, or `*`. None by default: a page has to be invited."""
    tenant: Name = "default"
    """Tenant of callers whose token names none: AUTH_TOKEN, loopback, bus clients."""
    tokens_file: str = ""
    """TOML file with a `[[tokens]]` table for each bearer token (`orchctl token new`), mode 0600; read again within a
    second when it changes. Empty: AUTH_TOKEN is the only token."""

    oidc: OidcSettings = OidcSettings()
    tls: TlsSettings = TlsSettings()

    def tokens_path(self) -> Path | None:
        return Path(self.tokens_file).expanduser().absolute() if self.tokens_file else None


class SchedulerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    lease_ttl_ms: Annotated[int, Meta(ge=1000)] = 2_000
    attempts_max: Annotated[int, Meta(ge=1)] = 3
    """Placements of one task before it fails with WORKER_RESET: a task that kills engines must not do so for ever."""
    metrics_addr: str = "127.0.0.1:0"


class PooldSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    node_id: Name = "node-1"
    engine_port_base: Annotated[int, Meta(ge=0, le=60_000)] = 0
    """First port for engines on loopback; 0 takes any free port."""
    backoff_initial_ms: Annotated[int, Meta(ge=1)] = 500
    backoff_factor: Annotated[float, Meta(ge=1)] = 2.0
    backoff_max_ms: Annotated[int, Meta(ge=1)] = 30_000
    stable_after_ms: Annotated[int, Meta(ge=1)] = 60_000
    """An engine that ran this long is healthy again: its backoff starts anew."""
    breaker_restarts: Annotated[int, Meta(ge=1)] = 8
    """Restarts without a stable run in between before the replica stays failed until its spec changes."""
    start_timeout_ms: Annotated[int, Meta(ge=1)] = 300_000
    slot_free_timeout_ms: Annotated[int, Meta(ge=100)] = 10_000
    """How long an engine may keep a slot after a cancel before it is killed; a prompt batch on a CPU takes a second."""
    drain_timeout_ms: Annotated[int, Meta(ge=0)] = 30_000
    frames_kept_bytes: Annotated[int, Meta(ge=0)] = 64 * 1024 * 1024
    """Frames of running and just-ended tasks kept to be published again after a bus restart."""
    cut_off_grace_ms: Annotated[int, Meta(ge=0)] = 60_000
    """A node that cannot reach the bus goes on generating for this long after its registry keys have expired, then
    ends its engine calls. After a restart of the bus or of its machine, which takes less, its streams go on whole; in
    a longer partition its tasks run elsewhere, and its engines would work for nobody."""
    metrics_addr: str = "127.0.0.1:0"


class ProvisionerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    cache_dir: str = ""
    """Engines and models; empty means `<state_dir>/cache`."""
    offline: bool = False
    """Nothing is fetched; only what the cache holds can be used (ORCH-3206)."""
    packages_allowed: tuple[str, ...] = ()
    """Distributions that may be fetched from the package index; empty allows any that a pool names exactly."""
    jobs_max: Annotated[int, Meta(ge=1, le=64)] = 4
    """Engines and models made at once; more wait: each needs disk, network and a core."""
    download_timeout_s: Annotated[float, Meta(gt=0)] = 3_600
    """Longest time one download may take: big models on slow links, and yet not for ever."""
    artifact_bytes_max: Annotated[int, Meta(ge=1024)] = 64 * 1024 * 1024 * 1024
    """Largest wheel or model file accepted, bytes: no index may fill the disk."""
    metrics_addr: str = "127.0.0.1:0"


class CatalogSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    trust_policy: TrustPolicy = TrustPolicy()
    """What a model must bring to enter the catalog. By default an unsigned one is taken, with a warning."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything an operator may set."""

    unknown_keys: Literal["refuse", "log"] = "refuse"
    """What becomes of keys in the config file that this release does not know: they are refused, or passed over with a
    warning, where one file serves releases of different age (OC-CONFIG-6001)."""
    profile: Literal["gpu", "ci"] = "gpu"
    """`ci` allows engines on the CPU, marked `device: "cpu"` everywhere. Never a fallback (ORCH-1102)."""
    state_dir: str = ""
    log_format: Literal["json", "pretty"] = "json"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    nats: NatsSettings = NatsSettings()
    gateway: GatewaySettings = GatewaySettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    poold: PooldSettings = PooldSettings()
    provisioner: ProvisionerSettings = ProvisionerSettings()
    catalog: CatalogSettings = CatalogSettings()
    pools: tuple[PoolSpec, ...] = ()
    sessions: SessionsSpec = SessionsSpec()
    """What sessions may use: the system's default, and tenants that have another."""

    def state_path(self) -> Path:
        if self.state_dir:
            return Path(self.state_dir).expanduser().absolute()
        return Path.home() / ".local" / "state" / "llama-orch"

    def cache_path(self) -> Path:
        if self.provisioner.cache_dir:
            return Path(self.provisioner.cache_dir).expanduser().absolute()
        return self.state_path() / "cache"


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
