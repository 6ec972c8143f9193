"""Ed25519 over a digest: true only where a trusted key has signed exactly that text."""

import base64
import binascii
from collections.abc import Sequence

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from llorch_shared.wire.catalog import Signature


def verify(signature: Signature, text: str, roots: Sequence[str]) -> bool:
    """`roots` are `ed25519:<base64>`."""
    try:
        signed = base64.b64decode(signature.signature, validate=True)
    except (binascii.Error, ValueError):
        return False
    return any(_is_of(root, signed, text.encode()) for root in roots)


def _is_of(root: str, signed: bytes, text: bytes) -> bool:
    try:
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(root.partition(":")[2], validate=True))
        key.verify(signed, text)
    except (InvalidSignature, ValueError):
        return False
    return True
