"""A certificate authority for one test, and certificates of it for localhost."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from llorch_shared.settings import TlsSettings


class Authority:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = generate_private_key(SECP256R1())
        self._name = name("test authority")
        self.file = folder / "ca.pem"
        self.file.write_bytes(self._signed(self._key, self._name, ca=True).public_bytes(Encoding.PEM))

    def issue(self, common: str, encryption: KeySerializationEncryption | None = None) -> TlsSettings:
        key = generate_private_key(SECP256R1())
        cert, file = self._folder / f"{common}.pem", self._folder / f"{common}.key"
        cert.write_bytes(self._signed(key, name(common)).public_bytes(Encoding.PEM))
        file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption()))
        return TlsSettings(cert_file=str(cert), key_file=str(file))

    def _signed(self, key: EllipticCurvePrivateKey, subject: x509.Name, *, ca: bool = False) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        )
        return builder.sign(self._key, hashes.SHA256())


def name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
