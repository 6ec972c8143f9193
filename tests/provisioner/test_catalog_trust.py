"""Which models this node may load, and with which bytes, decided on plain values."""

import base64
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from llorch_provisioner.core.catalog_trust import permitted
from llorch_provisioner.core.failure import Untrusted
from llorch_provisioner.core.trust import agreed
from llorch_shared.signatures import verify
from llorch_shared.wire.catalog import (
    CatalogEntry,
    ModelState,
    Signature,
    TrustMode,
    TrustPolicy,
    Verification,
    VerifyResult,
)

KEY = Ed25519PrivateKey.generate()
RAW = KEY.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
STRICT = TrustPolicy(mode=TrustMode.STRICT, ca_roots=(f"ed25519:{base64.b64encode(RAW).decode()}",))
PERMISSIVE = TrustPolicy()
REF, HEX = "file:/models/a.gguf", "a" * 64
DIGEST = f"sha256:{HEX}"
SIGNED = Signature(signer="me", algo="ed25519", signature=base64.b64encode(KEY.sign(DIGEST.encode())).decode())
FAILED = Verification(
    result=VerifyResult.FAIL, reason="unreadable", message="no disk", node_id="n", digest="", verified_ms=1
)


def entry(**changes: Any) -> CatalogEntry:
    fields: dict[str, Any] = {
        "id": "a",
        "digest": DIGEST,
        "source_url": REF,
        "tags": (),
        "manifests": (),
        "signatures": (SIGNED,),
        "sbom": None,
        "trust_policy": TrustPolicy(),
        "state": ModelState.ACTIVE,
        "warnings": (),
        "created_ms": 1,
        "changed_ms": 1,
    }
    return CatalogEntry(**{**fields, **changes})


def of(*entries: CatalogEntry, policy: TrustPolicy = STRICT) -> frozenset[str] | None:
    return permitted(REF, entries, policy, verify)


def test_a_signed_model_is_loaded_with_the_digest_of_its_entry() -> None:
    assert of(entry()) == {HEX}
    assert of(entry(state=ModelState.CANARY)) == of(entry(state=ModelState.DEPRECATED)) == {HEX}


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ([], "asks for a model of the catalog"),
        ([entry(signatures=())], "is not signed"),
        (
            [entry(signatures=(Signature(signer="x", algo="ed25519", verified=True),))],
            "no signature is of a trusted key",
        ),
        ([entry(digest=f"sha256:{'b' * 64}")], "no signature is of a trusted key"),
        ([entry(state=ModelState.DRAFT)], "is Draft"),
        ([entry(state=ModelState.RETIRED)], "is Retired"),
        ([entry(verification=FAILED)], "failed its verification: no disk"),
    ],
)
def test_under_a_strict_policy_nothing_else_is_loaded(entries: list[CatalogEntry], says: str) -> None:
    with pytest.raises(Untrusted, match=says) as refused:
        of(*entries)
    assert refused.value.code == "UNTRUSTED_ARTIFACT"
    assert of(*entries, policy=PERMISSIVE) == ({one.digest.removeprefix("sha256:") for one in entries} or None)


def test_a_model_of_the_catalog_that_is_strict_by_itself_is_held_to_it() -> None:
    with pytest.raises(Untrusted, match="not signed"):
        of(entry(signatures=(), trust_policy=TrustPolicy(mode=TrustMode.STRICT)), policy=PERMISSIVE)


def test_of_several_versions_those_that_are_trusted_may_be_loaded() -> None:
    other = entry(id="b", digest=f"sha256:{'b' * 64}", signatures=())
    assert of(entry(), other) == {HEX}
    assert of(entry(), other, policy=PERMISSIVE) == {HEX, "b" * 64}


def test_a_model_that_nobody_entered_is_loaded_from_where_models_may_come() -> None:
    assert of(policy=PERMISSIVE) is None
    with pytest.raises(Untrusted, match="models from file are not allowed"):
        of(policy=TrustPolicy(allowed_registries=("hf",)))


def test_what_the_pool_asks_for_and_what_the_catalog_has_must_agree() -> None:
    assert agreed("", None) == ()
    assert agreed(HEX, None) == agreed(HEX, {HEX, "b" * 64}) == agreed("", {HEX}) == (HEX,)
    with pytest.raises(Untrusted, match="the catalog has"):
        agreed("b" * 64, {HEX})
