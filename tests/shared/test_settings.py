"""Settings: who wins, what is refused and how it is said, and that a secret is never shown."""

import logging
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llorch_shared.settings import Secret, Settings, SettingsError
from llorch_shared.settings_loading import ENVIRONMENT, SECRET_NAMES, load, secret


def config(folder: Path, text: str) -> Path:
    path = folder / "llorch.toml"
    path.write_text(text)
    return path


def test_without_anything_the_defaults_hold_and_listen_on_loopback() -> None:
    loaded = load({})
    assert loaded == Settings()
    assert loaded.gateway.addr == "127.0.0.1:8080"
    assert loaded.profile == "gpu"


def test_a_flag_beats_the_environment_which_beats_the_file(tmp_path: Path) -> None:
    path = config(tmp_path, 'log_level = "error"\n[gateway]\naddr = "127.0.0.1:1"\ncancel_grace_ms = 7\n')
    environment = {"LLORCH_CONFIG": str(path), "ORCHD_ADDR": "127.0.0.1:2"}
    assert load({"LLORCH_CONFIG": str(path)}).gateway.addr == "127.0.0.1:1"
    assert load(environment).gateway.addr == "127.0.0.1:2"
    loaded = load(environment, flags={"gateway": {"addr": "127.0.0.1:3"}})
    assert loaded.gateway.addr == "127.0.0.1:3"
    assert (loaded.gateway.cancel_grace_ms, loaded.log_level) == (7, "error")


def test_a_flag_that_was_not_given_changes_nothing(tmp_path: Path) -> None:
    path = config(tmp_path, 'log_level = "error"\n')
    assert load({}, file=path, flags={"log_level": None, "gateway": {"addr": None}}).log_level == "error"


def test_an_empty_environment_value_is_as_good_as_none() -> None:
    assert load({"ORCHD_ADDR": ""}).gateway.addr == "127.0.0.1:8080"


@pytest.mark.parametrize(("name", "keys"), ENVIRONMENT.items())
def test_every_environment_name_sets_an_existing_key(name: str, keys: tuple[str, ...]) -> None:
    value: Any = Settings()
    for key in keys:
        value = getattr(value, key)
    words = {
        "LLORCH_LOG_LEVEL": "debug",
        "LLORCH_LOG_FORMAT": "pretty",
        "LLORCH_UNKNOWN_KEYS": "log",
        "NATS_INBOX_PREFIX": "_INBOX_ci",
    }
    kinds = {bool: "true", int: "3", str: words.get(name, "ci")}
    loaded: Any = load({name: kinds[type(value)]})
    for key in keys:
        loaded = getattr(loaded, key)
    assert loaded == {"true": True, "3": 3}.get(kinds[type(value)], kinds[type(value)])


@pytest.mark.parametrize("word", ["true", "TRUE", "1"])
def test_a_switch_of_the_environment_is_read_as_people_write_it(word: str) -> None:
    assert load({"AUTH_OPTIONAL": word}).gateway.auth_optional is True


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[gatway]\n", "gatway"),
        ("[gateway]\nadr = 'x'\n", "adr"),
        ("[scheduler]\nlease_ttl_ms = 5\n", "$.scheduler.lease_ttl_ms"),
        ("[gateway]\ncancel_grace_ms = 'soon'\n", "$.gateway.cancel_grace_ms"),
        ("profile = 'cpu'\n", "$.profile"),
        ("[[pools]]\nid = 'p'\nengine = 'mock'\n", "model"),
        ("[[pools]]\nid = 'P'\nengine = 'mock'\nmodel = 'm'\n", "$.pools[0].id"),
        ("[[pools]]\nid = 'p'\nengine = 'abacus'\nmodel = 'm'\n", "$.pools[0].engine"),
        ("[[pools]]\nid = 'p'\nengine = 'mock'\nmodel = 'm'\nqueue = { capacity = 0 }\n", "$.pools[0].queue.capacity"),
        ("gateway = 3\n", "$.gateway"),
    ],
)
def test_a_wrong_key_or_value_is_refused_by_its_name(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(SettingsError, match="bad setting") as caught:
        load({}, file=config(tmp_path, text))
    assert named in str(caught.value)
    assert "llorch.toml" in str(caught.value)


def test_unknown_keys_are_all_named_with_what_was_probably_meant(tmp_path: Path) -> None:
    text = "[gateway]\nadr = 'x'\nqueue = 1\n[[pools]]\nid = 'p'\nengine = 'mock'\nmodel = 'm'\nslot = 2\n"
    with pytest.raises(SettingsError) as caught:
        load({}, file=config(tmp_path, text))
    said = str(caught.value)
    assert "`$.gateway.adr` (did you mean 'addr'?)" in said
    assert "`$.pools[0].slot` (did you mean 'slots'?)" in said
    assert "`$.gateway.queue`" in said


def test_where_files_serve_several_releases_unknown_keys_are_passed_over_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool = "[[pools]]\nid = 'p'\nengine = 'mock'\nmodel = 'm'\ncolour = 'red'\n"
    path = config(tmp_path, "later = 1\n[gateway]\naddr = '127.0.0.1:9'\nadr = 'x'\n" + pool)
    loaded = load({"LLORCH_UNKNOWN_KEYS": "log"}, file=path)
    assert (loaded.gateway.addr, loaded.pools[0].id) == ("127.0.0.1:9", "p")
    assert all(name in caplog.text for name in ("$.later", "$.gateway.adr", "$.pools[0].colour"))


def test_a_buffer_may_be_given_in_events(tmp_path: Path) -> None:
    assert load({"ORCHD_SSE_CHANNEL_CAP": "32"}) == Settings()
    assert load({"ORCHD_SSE_CHANNEL_CAP": "64"}).gateway.sse_buffer_bytes == 512 * 1024
    with pytest.raises(SettingsError, match="ORCHD_SSE_CHANNEL_CAP"):
        load({"ORCHD_SSE_CHANNEL_CAP": "few"})
    with pytest.raises(SettingsError, match="sse_buffer_bytes"):
        load({"ORCHD_SSE_CHANNEL_CAP": "1"})


def test_the_version_pin_of_the_environment_holds_for_pools_that_do_not_say(tmp_path: Path) -> None:
    pool = "[[pools]]\nid = '{id}'\nengine = 'mock'\nmodel = 'm'\n{more}\n"
    path = config(
        tmp_path, pool.format(id="a", more="") + pool.format(id="b", more="require_same_engine_version = true")
    )
    [a, b] = load({"ORCH_REQUIRE_SAME_ENGINE": "0"}, file=path).pools
    assert (a.require_same_engine_version, b.require_same_engine_version) == (False, True)


def test_of_the_two_names_of_the_address_the_first_named_in_the_requirements_counts() -> None:
    environment = {"ORCHD_ADDR": "127.0.0.1:1", "BIND_ADDR": "127.0.0.1:2"}
    assert load(environment).gateway.addr == "127.0.0.1:1"
    assert load({"BIND_ADDR": "127.0.0.1:2"}).gateway.addr == "127.0.0.1:2"


SPELLED = """
[[pools]]
id = "small"
devices = [0]
env = { CUDA_LAUNCH_BLOCKING = "1" }
flags = ["--no-webui"]
engine.id = "llamacpp"
engine.version = "2026.10"
engine.package.name = "xllamacpp"
model.ref = "file:/models/a.gguf"
model.cache_dir = "/models"
"""


def test_a_pool_may_name_engine_and_model_as_tables(tmp_path: Path) -> None:
    plain = """
    [[pools]]
    id = "small"
    engine = "llamacpp"
    model = "file:/models/a.gguf"
    devices = [0]
    [pools.provisioning]
    mode = "package"
    package = { name = "xllamacpp", version = "2026.10" }
    model = { cache_dir = "/models" }
    env = { CUDA_LAUNCH_BLOCKING = "1" }
    flags = ["--no-webui"]
    """
    spelled = load({}, file=config(tmp_path, SPELLED)).pools
    assert spelled == load({}, file=config(tmp_path, plain)).pools


WAYS = {
    "source": """
    repo = "https://host/llama.cpp"
    ref = "0f1e"
    submodules = true
    build = { cmake_flags = ["-DGGML_CUDA=ON"], generator = "Ninja", cache_dir = "/build" }
    """,
    "container": """
    image = "host/vllm"
    tag = "v1"
    digest = "sha256:ab"
    """,
    "binary": """
    url = "https://host/llama-server"
    checksum = "sha256:ab"
    install_dir = "/opt"
    """,
}


def described(way: str, keys: str, mode: str = "") -> str:
    return f"""
    [[pools]]
    id = "p"
    engine = "vllm"
    model = "m"
    [pools.provisioning]
    mode = "{mode or way}"
    ports = [8100, 8101]
    [pools.provisioning.{way}]
    {keys}
    """


@pytest.mark.parametrize("way", WAYS)
def test_an_engine_may_be_described_in_each_way_of_the_requirements(tmp_path: Path, way: str) -> None:
    """Whether a node has engines in that way is for the node to say."""
    [pool] = load({}, file=config(tmp_path, described(way, WAYS[way]))).pools
    said = msgspec.json.decode(msgspec.json.encode(getattr(pool.provisioning, way)))
    assert said == tomllib.loads(WAYS[way])
    assert pool.provisioning.ports == (8100, 8101)


def test_a_way_that_is_not_the_mode_is_refused_and_so_is_a_secret_in_its_address(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="only read in mode binary, and the mode is package"):
        load({}, file=config(tmp_path, described("binary", WAYS["binary"], mode="package")))
    with pytest.raises(SettingsError, match="no user, password or token"):
        load({}, file=config(tmp_path, described("binary", WAYS["binary"].replace("//", "//me:secret@"))))


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ("engine.pakage.name = 'x'\n", "did you mean `engine.package.name`?"),
        ("provisioning.flags = ['--other']\n", "`flags` says otherwise than `provisioning.flags`"),
        ("provisioning.package = 'x'\n", "`engine.version` and `package` say the same thing"),
        ("provisioning.model.ref = 'file:/models/b.gguf'\n", "says otherwise than `model`"),
    ],
)
def test_a_pool_that_says_a_thing_twice_or_unknown_is_refused(tmp_path: Path, more: str, named: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load({}, file=config(tmp_path, SPELLED + more))
    assert named in str(caught.value)
    assert "$.pools[0]" in str(caught.value)


def test_a_wrong_value_of_the_environment_is_refused_by_its_key() -> None:
    with pytest.raises(SettingsError, match=r"\$.gateway.sse_heartbeat_ms"):
        load({"ORCHD_SSE_HEARTBEAT_MS": "often"})


@pytest.mark.parametrize("flags", [{}, {"gateway": {"cancel_grace_ms": 5}}])
def test_a_section_that_is_not_a_section_is_refused_whoever_else_sets_keys_in_it(
    tmp_path: Path, flags: dict[str, Any]
) -> None:
    with pytest.raises(SettingsError, match="gateway"):
        load({"ORCHD_ADDR": "127.0.0.1:2"}, file=config(tmp_path, "gateway = 3\n"), flags=flags)


def test_two_pools_of_one_name_are_refused(tmp_path: Path) -> None:
    pool = "[[pools]]\nid = 'p'\nengine = 'mock'\nmodel = 'm'\n"
    with pytest.raises(SettingsError, match="'p' is defined twice"):
        load({}, file=config(tmp_path, pool + pool))


def test_a_missing_or_broken_file_says_which_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"absent\.toml"):
        load({"LLORCH_CONFIG": str(tmp_path / "absent.toml")})
    with pytest.raises(SettingsError, match=r"llorch\.toml is not valid TOML"):
        load({}, file=config(tmp_path, "a = = b"))
    (tmp_path / "latin.toml").write_bytes(b'log_level = "\xe9"')
    with pytest.raises(SettingsError, match=r"latin\.toml is not valid TOML"):
        load({}, file=tmp_path / "latin.toml")


def test_a_pool_is_read_with_everything_it_may_say(tmp_path: Path) -> None:
    text = """
    [[pools]]
    id = "small"
    engine = "llamacpp"
    model = "file:/models/a.gguf"
    devices = [0, 1]
    slots = 4
    [pools.queue]
    capacity = 2
    [pools.provisioning]
    mode = "package"
    package = { name = "xllamacpp", version = "1" }
    """
    [pool] = load({}, file=config(tmp_path, text)).pools
    assert (pool.devices, pool.slots, pool.queue.capacity) == ((0, 1), 4, 2)
    assert pool.provisioning.package is not None


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Settings().profile = "ci"  # type: ignore[misc]


def test_a_secret_comes_from_its_name_or_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("from-a-file\n")
    assert secret("AUTH_TOKEN", {"AUTH_TOKEN": "plain"}).reveal() == "plain"
    assert secret("AUTH_TOKEN", {"AUTH_TOKEN_FILE": str(path)}).reveal() == "from-a-file"
    assert not secret("AUTH_TOKEN", {})
    with pytest.raises(SettingsError, match="AUTH_TOKEN_FILE"):
        secret("AUTH_TOKEN", {"AUTH_TOKEN_FILE": str(tmp_path / "absent")})
    with pytest.raises(SettingsError, match="not a known secret"):
        secret("HOME", {"HOME": "/"})


def test_a_secret_is_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    hidden = Secret("hunter2")
    with caplog.at_level(logging.INFO):
        logging.getLogger("t").info("with %s and %r", hidden, {"token": hidden})
    shown = [str(hidden), repr(hidden), f"{hidden}", repr([hidden]), caplog.text, str(Secret.__slots__)]
    assert all("hunter2" not in text for text in shown)
    with pytest.raises(TypeError):
        msgspec.json.encode(hidden)


def test_no_secret_can_be_written_in_the_config_file(tmp_path: Path) -> None:
    for name in SECRET_NAMES:
        for key in (name, name.lower()):
            with pytest.raises(SettingsError):
                load({}, file=config(tmp_path, f"{key} = 'x'\n"))


def test_paths_default_below_the_state_folder(tmp_path: Path) -> None:
    loaded = load({"LLORCH_STATE_DIR": str(tmp_path)})
    assert loaded.state_path() == tmp_path
    assert loaded.cache_path() == tmp_path / "cache"
    assert load({"LLORCH_CACHE_DIR": str(tmp_path / "c")}).cache_path() == tmp_path / "c"
