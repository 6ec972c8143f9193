"""The bus behind TLS, with certificates on both sides."""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from llorch_shared import streams
from llorch_shared.bus.nats import connect
from llorch_shared.bus.nats_client import tls_context
from llorch_shared.settings import NatsSettings, NatsTlsSettings, SettingsError
from support.authority import Authority
from support.nats_server import NatsServer

pytestmark = pytest.mark.nats
SERVER = 'tls {{ cert_file: "{cert}", key_file: "{key}", ca_file: "{ca}", verify: true }}\n'


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def server(tmp_path: Path, authority: Authority) -> Iterator[NatsServer]:
    """Takes nobody without a certificate of the authority."""
    own = authority.issue("server")
    running = NatsServer(
        tmp_path / "nats", extra=SERVER.format(cert=own.cert_file, key=own.key_file, ca=authority.file)
    )
    running.start()
    yield running
    running.stop()


def address(server: NatsServer) -> str:
    return f"tls://localhost:{server.port}"


async def test_both_sides_show_a_certificate(server: NatsServer, authority: Authority) -> None:
    own = authority.issue("gateway")
    tls = NatsTlsSettings(ca_file=str(authority.file), cert_file=own.cert_file, key_file=own.key_file)
    async with asyncio.timeout(15):
        bus = await connect(NatsSettings(url=address(server), tls=tls), name="shown")
        await bus.ensure(streams.base())
        await bus.store("llorch.aud.test.task", b"{}")
    await bus.close()


@pytest.mark.parametrize("shows", ["nothing", "a stranger's"])
async def test_who_shows_no_certificate_of_the_authority_is_not_let_in(
    server: NatsServer, authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture, shows: str
) -> None:
    (tmp_path / "strange").mkdir()
    own = Authority(tmp_path / "strange").issue("gateway")
    tls = NatsTlsSettings(ca_file=str(authority.file))
    if shows != "nothing":
        tls = NatsTlsSettings(ca_file=str(authority.file), cert_file=own.cert_file, key_file=own.key_file)
    with caplog.at_level(logging.WARNING):
        connecting = asyncio.create_task(connect(NatsSettings(url=address(server), tls=tls), name="turned away"))
        async with asyncio.timeout(15):
            while "turned away" not in caplog.text:
                await asyncio.sleep(0.02)
    assert not connecting.done()
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting


@pytest.mark.parametrize(
    ("tls", "told"),
    [
        (NatsTlsSettings(ca_file="/nowhere/ca.pem"), "nats.tls cannot be used"),
        (NatsTlsSettings(cert_file="/nowhere/own.pem"), "needs both"),
        (NatsTlsSettings(cert_file="/nowhere/own.pem", key_file="/nowhere/own.key"), "nats.tls cannot be used"),
    ],
)
def test_files_that_cannot_be_used_are_named_at_once(tls: NatsTlsSettings, told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        tls_context(NatsSettings(tls=tls))


def test_without_a_wish_for_it_there_is_no_tls() -> None:
    assert tls_context(NatsSettings()) is None
    assert tls_context(NatsSettings(url="tls://localhost:4222")) is not None
