"""Certificates and keys in files, as TLS contexts take them."""

import ssl


def show(context: ssl.SSLContext, cert_file: str, key_file: str) -> None:
    """What this side shows of itself. Raises OSError, ValueError for files that cannot be used."""
    context.load_cert_chain(cert_file, key_file, password=_no_password)


def _no_password() -> str:
    """Without it the library would ask at the terminal, and a service would wait for ever."""
    raise ValueError("the key is encrypted; give one that is not, readable by the service alone")
