"""TLS of the HTTP port, with and without client certificates, from an authority made for the test."""

import ssl
from pathlib import Path

import httpx
import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption

from llorch_ctl.gateway_client import GatewayClient, gateway_url, trust
from llorch_gateway import tls
from llorch_gateway.server import HttpServer
from llorch_shared.settings import GatewaySettings, Secret, Settings, SettingsError, TlsSettings
from support.authority import Authority
from support.client import task_request
from support.gateways import STARTED, Cluster, Door, end, tokens


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def served(door: Door, wanted: TlsSettings) -> HttpServer:
    server = HttpServer(door.gateway.front, "127.0.0.1:0", requests_max=64, tls=tls.options(wanted))
    await server.start()
    assert server.url.startswith("https://")
    return server


@pytest.mark.parametrize("http2", [False, True], ids=["h1", "h2"])
async def test_a_task_is_submitted_and_streamed(
    cluster: Cluster, door: Door, authority: Authority, http2: bool
) -> None:
    server = await served(door, authority.issue("gateway"))
    context = ssl.create_default_context(cafile=str(authority.file))
    request = task_request()
    async with httpx.AsyncClient(
        base_url=f"https://localhost:{server.port}", verify=context, http1=not http2, http2=http2, timeout=15
    ) as http:
        accepted = await http.post(
            "/v1/tasks", content=msgspec.json.encode(request), headers={"content-type": "application/json"}
        )
        assert (accepted.status_code, accepted.http_version) == (202, "HTTP/2" if http2 else "HTTP/1.1")
        await cluster.publish(door.lane, request.task_id, STARTED, tokens(0, 9), end(10))
        stream = await http.get(f"/v1/tasks/{request.task_id}/stream")
        assert stream.content.endswith(STARTED + tokens(0, 9) + end(10))
    await server.stop()


async def test_without_the_authoritys_certificate_nobody_gets_in(door: Door, authority: Authority) -> None:
    wanted = msgspec.structs.replace(authority.issue("gateway"), client_ca_file=str(authority.file))
    server = await served(door, wanted)
    known, client = ssl.create_default_context(cafile=str(authority.file)), authority.issue("client")
    async with httpx.AsyncClient(base_url=f"https://localhost:{server.port}", verify=known, timeout=15) as http:
        with pytest.raises((httpx.TransportError, ssl.SSLError)):
            await http.get("/healthz")
    known.load_cert_chain(client.cert_file, client.key_file)
    async with httpx.AsyncClient(base_url=f"https://localhost:{server.port}", verify=known, timeout=15) as http:
        assert (await http.get("/healthz")).status_code == 200
    await server.stop()


@pytest.mark.parametrize("mutual", [False, True], ids=["tls", "mtls"])
async def test_orchctl_believes_the_certificate_of_its_own_gateway_and_no_other(
    door: Door, authority: Authority, mutual: bool
) -> None:
    wanted = authority.issue("gateway")
    if mutual:
        wanted = msgspec.structs.replace(wanted, client_ca_file=str(authority.file))
    server = await served(door, wanted)

    def client_of(files: TlsSettings) -> GatewayClient:
        settings = Settings(gateway=GatewaySettings(addr=f"127.0.0.1:{server.port}", tls=files))
        return GatewayClient(gateway_url(settings), Secret(""), tls=trust(settings))

    async with client_of(wanted) as client:
        assert (await client.capabilities()).engines
    with pytest.raises(Exception, match=r"(?i)certificate.verify.failed"):
        async with client_of(authority.issue("another")) as client:
            await client.capabilities()
    await server.stop()


def test_what_it_could_not_serve_with_is_said_before_the_start(authority: Authority, tmp_path: Path) -> None:
    good, other = authority.issue("gateway"), authority.issue("other")
    assert tls.options(TlsSettings()) == {}
    locked = authority.issue("locked", BestAvailableEncryption(b"word"))
    for wrong, said in (
        (TlsSettings(cert_file=good.cert_file), "both"),
        (TlsSettings(client_ca_file=str(authority.file)), "both"),
        (msgspec.structs.replace(good, key_file=other.key_file), "cannot be used"),
        (msgspec.structs.replace(good, cert_file=str(tmp_path / "none")), "No such file"),
        (msgspec.structs.replace(good, client_ca_file=good.key_file), "cannot be used"),
        (locked, "encrypted"),
    ):
        with pytest.raises(SettingsError, match=said):
            tls.options(wrong)
