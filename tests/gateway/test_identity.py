"""Tokens of a file at the door: who they are, what changes with the file, and what a broken file does not."""

import logging
from pathlib import Path

import pytest

from llorch_shared import subjects
from llorch_shared.auth import digest, fingerprint
from llorch_shared.errors import ErrorCode
from llorch_shared.http_api import Readiness
from llorch_shared.settings import Secret
from llorch_shared.token_file import TokenFileError
from llorch_shared.wire.task import Priority
from support.asgi import AsgiClient
from support.gateways import Cluster, Door
from support.tokens import bearer, write_tokens


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens.toml"


async def guarded(cluster: Cluster, path: Path, token: str = "", **changes: object) -> Door:
    return await cluster.gateway(token=token, tokens_file=str(path), tick=False, **changes)


async def test_a_token_of_the_file_brings_its_tenants_work(
    cluster: Cluster, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    write_tokens(path, alice="blue", bob="red")
    door = await guarded(cluster, path, token="static")
    for token in ("alice-token", "bob-token", "static"):
        await door.submit(headers=bearer(token))
    stored = [message.subject for message in await cluster.admissions()]
    wanted = [subjects.admission("p1", Priority.INTERACTIVE, tenant) for tenant in ("blue", "red", "default")]
    assert stored == wanted
    told = [record.__dict__["identity"] for record in caplog.records if getattr(record, "action", "") == "admit"]
    assert told == [f"token:{fingerprint(token)}" for token in ("alice-token", "bob-token", "static")]
    assert "alice-token" not in caplog.text


async def test_a_file_alone_is_a_guard_and_an_empty_one_lets_nobody_in(cluster: Cluster, path: Path) -> None:
    write_tokens(path)
    door = await guarded(cluster, path)
    assert (await door.get("/v1/capabilities")).error.code is ErrorCode.MISSING_TOKEN
    refused = await door.get("/v1/capabilities", authorization="Bearer alice-token")
    assert (refused.status, refused.error.code) == (401, ErrorCode.BAD_TOKEN)
    stranger = AsgiClient(door.gateway.front, peer="10.1.2.3")
    assert (await stranger.get("/v1/capabilities")).status == 401


async def test_a_priority_that_the_token_does_not_permit_is_refused_before_the_queue(
    cluster: Cluster, path: Path
) -> None:
    write_tokens(path, alice="blue", more='priorities = ["batch"]')
    door = await guarded(cluster, path)
    refused = await door.post_task(bearer("alice-token"), priority="interactive")
    assert (refused.status, refused.error.code) == (400, ErrorCode.INVALID_PARAMS)
    assert "interactive" in refused.error.message
    assert not await cluster.admissions()
    assert (await door.post_task(bearer("alice-token"), priority="batch")).status == 202


async def test_a_changed_file_is_in_effect_at_once(cluster: Cluster, path: Path) -> None:
    write_tokens(path, alice="blue")
    door = await guarded(cluster, path)
    write_tokens(path, bob="red")
    door.gateway.tokens.look()
    assert (await door.get("/v1/capabilities", **bearer("alice-token"))).status == 401
    assert (await door.get("/v1/capabilities", **bearer("bob-token"))).status == 200


@pytest.mark.parametrize("how", ["broken", "open", "gone"])
async def test_a_file_that_cannot_be_used_leaves_the_tokens_as_they_were_and_says_so(
    cluster: Cluster, path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_tokens(path, alice="blue")
    door = await guarded(cluster, path)
    if how == "broken":
        path.write_text("[[tokens]]\nname = ")
    elif how == "open":
        path.chmod(0o644)
    else:
        path.unlink()
    door.gateway.tokens.look()
    door.gateway.tokens.look()
    known = bearer("alice-token")
    ready = await door.get("/readyz", **known)
    told = ready.json(Readiness)
    assert (ready.status, told.ready, len(told.warnings)) == (200, True, 1)
    assert "stay in effect" in told.warnings[0]
    assert caplog.text.count("stay in effect") == 1
    assert b"tokens_file_stale 1.0" in (await door.get("/metrics", **known)).body
    path.unlink(missing_ok=True)
    write_tokens(path, alice="blue", bob="red")
    door.gateway.tokens.look()
    assert (await door.get("/readyz", **known)).json(Readiness).warnings == ()
    metrics = (await door.get("/metrics", **known)).body
    assert b"tokens_file_stale 0.0" in metrics
    assert b"tokens_known 2.0" in metrics


async def test_a_file_that_cannot_be_used_from_the_start_is_refused(cluster: Cluster, path: Path) -> None:
    write_tokens(path, alice="blue")
    path.chmod(0o640)
    with pytest.raises(TokenFileError, match="chmod 600"):
        await guarded(cluster, path)


def test_no_token_is_in_its_file(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    write_tokens(path, alice="blue")
    assert "alice-token" not in path.read_text()
    assert digest("alice-token").hex() in path.read_text()
    assert "alice" not in repr(Secret("alice"))
