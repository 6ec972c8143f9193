"""TLS of the HTTP port: what the server is given, checked before it opens anything."""

import ssl
from pathlib import Path
from typing import Any

from granian.constants import SSLProtocols

from llorch_shared import certificates
from llorch_shared.settings import SettingsError, TlsSettings


def options(wanted: TlsSettings) -> dict[str, Any]:
    """For the server; empty without TLS. Raises SettingsError for what it could not serve with."""
    if not (wanted.cert_file or wanted.key_file or wanted.client_ca_file):
        return {}
    if not (wanted.cert_file and wanted.key_file):
        raise SettingsError("gateway.tls needs both cert_file and key_file")
    try:
        check = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificates.show(check, wanted.cert_file, wanted.key_file)
        if wanted.client_ca_file:
            check.load_verify_locations(wanted.client_ca_file)
    except (OSError, ValueError) as error:
        raise SettingsError(f"gateway.tls cannot be used: {error}") from error
    return {
        "ssl_cert": Path(wanted.cert_file),
        "ssl_key": Path(wanted.key_file),
        "ssl_protocol_min": SSLProtocols.tls12,
        "ssl_ca": Path(wanted.client_ca_file) if wanted.client_ca_file else None,
        "ssl_client_verify": bool(wanted.client_ca_file),
    }
