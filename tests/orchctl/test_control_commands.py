"""`orchctl tenant`, `catalog`, `session`, `artifact` and `audit list` against a gateway that runs."""

import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from llorch_ctl.exits import Exit
from support.nats_server import NatsServer, free_port
from support.orchctl import Orchctl, on_bus
from support.processes import ServiceProcess

DEADLINE_S = 60.0
DIGEST = f"sha256:{'a' * 64}"


@pytest.fixture
def gateway(
    nats_server: NatsServer, orchctl: Orchctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    async def nothing(_: object) -> None:
        """The streams are there."""

    on_bus(nats_server, nothing)
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("ORCHD_ADDR", address)
    environment = {"NATS_URL": nats_server.url, "ORCHD_ADDR": address}
    process = ServiceProcess("gateway", ["llorch_gateway"], folder=tmp_path, environment=environment)
    process.start()
    deadline = time.monotonic() + DEADLINE_S
    while orchctl("tenant", "list")[0] != Exit.OK:
        assert process.running, process.log_path.read_text()
        assert time.monotonic() < deadline, process.log_path.read_text()
        time.sleep(0.1)
    yield
    process.kill9()


@pytest.mark.nats
@pytest.mark.usefixtures("gateway")
def test_what_operators_control_is_reached_from_the_command_line(orchctl: Orchctl, tmp_path: Path) -> None:
    def told(*arguments: str) -> str:
        code, out, err = orchctl(*arguments)
        assert code == Exit.OK, (arguments, err)
        return out

    told("tenant", "set", "team-a", "weight=5", "max_concurrent=8")
    assert json.loads(told("tenant", "set", "team-a", "max_concurrent=null", "rps=2.5", "--json")) == {
        "id": "team-a",
        "weight": 5,
        "max_concurrent": None,
        "rps": 2.5,
        "tokens_per_min": None,
        "kv_mb": None,
    }
    assert "team-a" in told("tenant", "list")
    assert "2.5" in told("tenant", "show", "team-a")
    for wrong, exit_code in ((("color=red",), Exit.USAGE), (("weight=0",), Exit.USAGE), (("weight",), Exit.USAGE)):
        assert orchctl("tenant", "set", "team-a", *wrong)[0] == exit_code
    told("tenant", "delete", "team-a")
    assert orchctl("tenant", "show", "team-a")[0] == Exit.FAILED

    model = tmp_path / "model.json"
    model.write_text(json.dumps({"id": "words", "digest": DIGEST, "source_url": "mock:words", "tags": ["stable"]}))
    assert "is not signed" in told("catalog", "add", str(model))
    told("catalog", "state", "words", "Deprecated")
    assert json.loads(told("catalog", "show", "words", "--json"))["state"] == "Deprecated"
    assert "words" in told("catalog", "list", "--tag", "stable")
    assert [json.loads(line)["id"] for line in told("catalog", "list", "--json").splitlines()] == ["words"]
    assert orchctl("catalog", "verify", "words")[0] == Exit.REFUSED
    told("catalog", "delete", "words")
    assert told("catalog", "list", "--json") == ""

    session = str(uuid.uuid4())
    shown = json.loads(told("session", "set", session, "--tokens", "100", "--turns", "3", "--json"))
    assert (shown["tokens_budget_remaining"], shown["turns_max"]) == (100, 3)
    assert "tokens_budget_remaining" in told("session", "show", session)
    told("session", "delete", session)

    pool = tmp_path / "pool.toml"
    pool.write_text('[[pools]]\nid = "chat"\nengine = "mock"\nmodel = "mock:words"\n')
    told("pool", "apply", str(pool))
    assert "mock:words" in told("pool", "list")
    told("pool", "remove", "chat")
    assert json.loads(told("pool", "list", "--json")) == {"pools": []}
    assert orchctl("pool", "remove", "chat")[0] == Exit.USAGE

    assert told("artifact", "list", "--json") == ""
    assert orchctl("artifact", "show", DIGEST)[0] == Exit.FAILED
    deadline = time.monotonic() + DEADLINE_S
    while len(said := told("audit", "list", "--task", "team-a", "--event", "tenant_changed").splitlines()) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "command=put" in said[0]
    assert "localhost" in said[0]
    assert len(told("audit", "list", "--limit", "2", "--json").splitlines()) == 2
