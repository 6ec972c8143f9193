"""Trust and lifecycle of models, decided on plain values: what enters, what is admitted, which version a tag means."""

import base64
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from llorch_gateway.core.catalog import MOVES, moved
from llorch_shared.errors import ErrorCode, OrchError
from llorch_shared.models import Models
from llorch_shared.signatures import verify
from llorch_shared.trust import effective, judge, registry_of
from llorch_shared.wire.catalog import (
    CatalogEntry,
    CatalogModel,
    ModelState,
    StateChange,
    TrustPolicy,
    Verification,
    VerifyResult,
)
from support.client import task_request
from support.gateways import replica

KEY, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
DIGEST = f"sha256:{'a' * 64}"
SOURCE = "mock:words"


def root(key: Ed25519PrivateKey) -> str:
    raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return f"ed25519:{base64.b64encode(raw).decode()}"


def signature(key: Ed25519PrivateKey = KEY, text: str = DIGEST, **changes: Any) -> dict[str, Any]:
    signed = base64.b64encode(key.sign(text.encode())).decode()
    return {"signer": "me", "algo": "ed25519", "signature": signed, **changes}


def model(**changes: Any) -> CatalogModel:
    return msgspec.convert({"id": "words", "digest": DIGEST, "source_url": SOURCE, **changes}, CatalogModel)


def entry(**changes: Any) -> CatalogEntry:
    fields: dict[str, Any] = {
        "id": "words",
        "digest": DIGEST,
        "source_url": SOURCE,
        "tags": (),
        "manifests": (),
        "signatures": (),
        "sbom": None,
        "trust_policy": TrustPolicy(),
        "state": ModelState.ACTIVE,
        "warnings": (),
        "created_ms": 1,
        "changed_ms": 1,
    }
    return CatalogEntry(**{**fields, **changes})


def models(*entries: CatalogEntry) -> Models:
    made = Models()
    for one in entries:
        made.put(one.id, one)
    return made


@pytest.mark.parametrize(
    ("source", "registry"),
    [
        ("hf:org/repo/file.gguf", "hf"),
        ("https://user@Models.Example:8443/a", "models.example:8443"),
        ("oci://registry.example/repo:tag", "registry.example"),
        ("pypi:pkg/file", "pypi"),
        ("file:/a", "file"),
        ("models/a.gguf", "file"),
    ],
)
def test_where_a_model_comes_from(source: str, registry: str) -> None:
    assert registry_of(source) == registry


def test_only_a_trusted_keys_signature_of_this_digest_is_verified_whatever_was_claimed() -> None:
    policy = TrustPolicy(ca_roots=(root(KEY),))
    verdict = judge(model(signatures=[signature()]), policy, verify)
    assert (verdict.result, verdict.signatures[0].verified) == (VerifyResult.PASS, True)
    for bad in (
        signature(OTHER, verified=True),
        signature(text=DIGEST.replace("a", "b"), verified=True),
        signature(algo="rsa", verified=True),
        signature(signature="not base64", verified=True),
        signature(signature="", verified=True),
    ):
        verdict = judge(model(signatures=[bad]), policy, verify)
        assert (verdict.result, verdict.signatures[0].verified) == (VerifyResult.WARN, False), bad
    assert "rsa" in judge(model(signatures=[signature(algo="rsa")]), policy, verify).problems[0]


@pytest.mark.parametrize(
    ("changes", "policy", "says"),
    [
        ({}, {"mode": "strict"}, "not signed"),
        ({}, {"require_signature": True}, "not signed"),
        ({"signatures": [signature(OTHER)]}, {"mode": "strict"}, "trusted key"),
        ({"signatures": [signature()]}, {"require_sbom": True}, "sbom"),
        ({}, {"allowed_registries": ["hf"]}, "models from mock are not allowed"),
    ],
)
def test_what_the_policy_does_not_take_is_untrusted(changes: dict[str, Any], policy: dict[str, Any], says: str) -> None:
    wanted = msgspec.convert({"ca_roots": [root(KEY)], **policy}, TrustPolicy)
    with pytest.raises(OrchError, match=says) as refused:
        judge(model(**changes), wanted, verify)
    assert (refused.value.code, refused.value.status) == (ErrorCode.UNTRUSTED_ARTIFACT, 400)
    assert judge(model(**changes), TrustPolicy(), verify).result is VerifyResult.WARN


def test_a_models_own_policy_asks_for_more_and_never_for_less() -> None:
    deployment = TrustPolicy(allowed_registries=("hf", "file"), ca_roots=(root(KEY),), require_sbom=True)
    own = msgspec.convert({"mode": "strict", "allowed_registries": ["hf"]}, TrustPolicy)
    both = effective(deployment, own, strict=False)
    assert (both.mode, both.allowed_registries, both.require_sbom) == ("strict", ("hf",), True)
    assert both.ca_roots == deployment.ca_roots
    assert effective(deployment, None, strict=True).mode == "strict"
    for wider in ({"allowed_registries": ("pypi",)}, {"ca_roots": (root(OTHER),)}):
        with pytest.raises(OrchError, match="only"):
            effective(deployment, TrustPolicy(**wider), strict=False)  # type: ignore[arg-type]


def test_a_model_moves_through_its_life_and_nothing_becomes_a_draft_again() -> None:
    for state, after in MOVES.items():
        for target in ModelState:
            change = StateChange(state=target, deadline_ms=5_000)
            if target is state:
                assert moved(entry(state=state), change, 10) == entry(state=state)
            elif target in after:
                made = moved(entry(state=state), change, 10)
                assert (made.state, made.changed_ms) == (target, 10)
                assert made.drain_deadline_ms == (5_010 if target is ModelState.RETIRED else None)
            else:
                with pytest.raises(OrchError) as refused:
                    moved(entry(state=state), change, 10)
                assert refused.value.status == 409
    assert ModelState.DRAFT not in frozenset().union(*MOVES.values())


@pytest.mark.parametrize("state", ModelState)
def test_only_a_model_in_use_takes_tasks(state: ModelState) -> None:
    held = models(entry(state=state))
    if state in (ModelState.ACTIVE, ModelState.CANARY):
        held.check(task_request())
        return
    with pytest.raises(OrchError, match=str(state)) as refused:
        held.check(task_request())
    assert (refused.value.code, refused.value.status) == (ErrorCode.MODEL_DEPRECATED, 403)
    held.check(task_request(model_ref="mock:other"))
    models(entry(state=state), entry(id="newer")).check(task_request())
    held.put("words", None)
    held.check(task_request())


@pytest.mark.parametrize("state", [ModelState.DRAFT, ModelState.DEPRECATED, ModelState.RETIRED])
def test_a_deprecated_model_is_for_its_old_sessions_and_who_insists(state: ModelState) -> None:
    held = models(entry(state=state, changed_ms=1_000), entry(id="other", state=ModelState.RETIRED, digest="sha256:o"))
    cases: list[tuple[dict[str, Any], int | None, bool]] = [
        ({"override": True}, None, True),
        ({}, 999, True),
        ({}, 1_000, True),
        ({}, 1_001, False),
        ({}, None, False),
    ]
    for changes, since_ms, taken in cases:
        request = task_request(**changes)
        if taken and state is ModelState.DEPRECATED:
            held.check(request, session_since_ms=since_ms)
            held.check_served(request, [replica(model_digest=DIGEST)], session_since_ms=since_ms)
            by_id = task_request(model_ref="catalog:words", **changes)
            assert held.resolved(by_id, session_since_ms=since_ms).model_ref == SOURCE
        else:
            with pytest.raises(OrchError) as refused:
                held.check(request, session_since_ms=since_ms)
            assert refused.value.code is ErrorCode.MODEL_DEPRECATED


def test_what_waited_before_a_model_was_retired_is_kept() -> None:
    held = models(entry(state=ModelState.RETIRED, changed_ms=1_000))
    held.check(task_request(), stored_ms=999)
    with pytest.raises(OrchError):
        held.check(task_request(), stored_ms=1_001)


def test_a_model_that_failed_its_verification_takes_no_tasks() -> None:
    found = Verification(
        result=VerifyResult.FAIL, reason="digest_mismatch", message="m", node_id="n", digest="", verified_ms=1
    )
    with pytest.raises(OrchError) as refused:
        models(entry(verification=found)).check(task_request())
    assert refused.value.code is ErrorCode.UNTRUSTED_ARTIFACT


def test_replicas_that_have_loaded_another_digest_take_no_tasks() -> None:
    held = models(entry())
    loaded = replica(model_digest=DIGEST)
    other = replica(number=1, model_digest=f"sha256:{'b' * 64}")
    held.check_served(task_request(), [loaded, other])
    held.check_served(task_request(), [replica()])
    held.check_served(task_request(model_ref="mock:other"), [other])
    with pytest.raises(OrchError, match="another digest"):
        held.check_served(task_request(), [other])


def test_a_tag_means_the_model_in_use_that_was_entered_last_with_it() -> None:
    old = entry(id="old", tags=("stable",), source_url="mock:old", created_ms=1)
    new = entry(id="new", tags=("stable",), source_url="mock:new", created_ms=2)
    held = models(new, old)
    request = task_request(model_ref="catalog:stable")
    assert held.resolved(request).model_ref == "mock:new"
    assert held.resolved(task_request(model_ref="catalog:old")).model_ref == "mock:old"
    held.put("new", msgspec.structs.replace(new, state=ModelState.RETIRED))
    assert held.resolved(request).model_ref == "mock:old"
    with pytest.raises(OrchError, match="Retired"):
        held.resolved(task_request(model_ref="catalog:new"))
    with pytest.raises(OrchError, match="has no"):
        held.resolved(task_request(model_ref="catalog:nobody"))
