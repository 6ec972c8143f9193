"""The metrics endpoint of services without HTTP: loopback only, a free port on request, a clear refusal."""

import urllib.request

import pytest

from llorch_shared.http_api import METRICS_TEXT
from llorch_shared.metrics import Metrics
from llorch_shared.metrics_endpoint import MetricsEndpoint
from llorch_shared.settings import SettingsError


def test_a_port_of_zero_takes_a_free_one_and_serves_the_contract() -> None:
    endpoint = MetricsEndpoint(Metrics(), "127.0.0.1:0", key="poold.metrics_addr")
    try:
        with urllib.request.urlopen(f"http://{endpoint.address}/metrics", timeout=20) as response:
            assert response.headers["content-type"].partition(";")[0] == METRICS_TEXT.partition(";")[0]
            assert b"bus_connected" in response.read()
    finally:
        endpoint.close()


def test_a_taken_port_is_told_with_its_setting() -> None:
    first = MetricsEndpoint(Metrics(), "127.0.0.1:0", key="poold.metrics_addr")
    try:
        with pytest.raises(SettingsError, match=r"poold\.metrics_addr"):
            MetricsEndpoint(Metrics(), first.address, key="poold.metrics_addr")
    finally:
        first.close()


@pytest.mark.parametrize("address", ["0.0.0.0:9100", "192.168.1.4:9100", ":9100", "nonsense", "127.0.0.1:many"])
def test_nothing_but_a_loopback_address_is_taken(address: str) -> None:
    with pytest.raises(SettingsError):
        MetricsEndpoint(Metrics(), address, key="scheduler.metrics_addr")
