"""Settings: one frozen Struct, read once (`settings_loading.py`), passed down. Its fields are the keys of the config
file (`[gateway] addr = …`, `[[pools]] …`)."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from llorch_shared.wire.catalog import TrustPolicy
from llorch_shared.wire.objects import OBJECT_SHARE_BYTES
from llorch_shared.wire.session import SessionsSpec
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Name


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
    inbox_prefix: Annotated[str, Meta(pattern=r"^(_INBOX[A-Za-z0-9._-]{0,100})?$(?!\n)")] = ""
    """Where answers come back, for a user that may listen at no other: `_INBOX_auditor` of the auditor. Empty: as the
    service's own user may (`_INBOX_<service>`)."""
    tls: NatsTlsSettings = NatsTlsSettings()
    replicas: Annotated[int, Meta(ge=1, le=5)] = 1
    """Copies of every stream: 1 on one server, 3 in a cluster, so that it loses nothing with one of its servers."""
    token_bytes_max: Annotated[int, Meta(ge=16 * 1024 * 1024)] = 256 * 1024 * 1024
    """Memory for token streams that can still be resumed, bytes; the oldest go first."""
    tenant_object_bytes_max: Annotated[int, Meta(ge=16 * 1024 * 1024)] = OBJECT_SHARE_BYTES
    """What one tenant may have in the object store (large prompts, artifacts, traces; each for seven days), bytes: half
    of it, so that no tenant fills it for all."""


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
    answer_bytes_max: Annotated[int, Meta(ge=1024 * 1024, le=256 * 1024 * 1024)] = 64 * 1024 * 1024
    """Most memory of one answer that is not streamed (completions, vectors), bytes; a larger one ends with an error as
    soon as it is foreseen. All of a process together hold 256 MiB, beyond it 503."""
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
    """How long a connection waits for the headers of its next request to be whole, then it is closed: slow and idle
    clients must not hold connections. HTTP/2 has six times that between two requests."""
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
