"""Whether the catalog lets a model be loaded on this node, and with which bytes (ORCH-3037, 3061). Pure.

Under a strict policy only a model is loaded that the catalog has, in a state in which it serves, signed as the policy
asks. Where the catalog names digests, a file with another one is loaded under no policy. Signatures are looked at here
anew, with the keys of this node's own configuration: what an entry says of them is not believed.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from llorch_provisioner.core.failure import Untrusted
from llorch_provisioner.core.trust import parse_digest
from llorch_shared.errors import OrchError
from llorch_shared.trust import Verifier, check_registry, judge_entry, policy_of
from llorch_shared.wire.catalog import CatalogEntry, ModelState, TrustMode, TrustPolicy, VerifyResult

LOADED: Final = frozenset({ModelState.ACTIVE, ModelState.CANARY, ModelState.DEPRECATED})
"""A deprecated model ends what it has begun."""
_REMEDY: Final = "enter, sign or verify the model in the catalog; the node looks again by itself"


def permitted(
    model_ref: str, entries: Sequence[CatalogEntry], policy: TrustPolicy, verify: Verifier
) -> frozenset[str] | None:
    """`entries` are those of this reference. Returns the digests that its file may have, in hexadecimal; None where the
    catalog knows none. Raises Untrusted."""
    if not entries:
        _check_unknown(model_ref, policy)
        return None
    objections = {entry.id: _objection(entry, policy, verify) for entry in entries}
    trusted = [entry for entry in entries if not objections[entry.id]]
    if not trusted:
        raise Untrusted(f"{model_ref} may not be loaded: {_listed(objections.values())}", _REMEDY)
    return frozenset(parse_digest(entry.digest) for entry in trusted)


def _check_unknown(model_ref: str, policy: TrustPolicy) -> None:
    try:
        check_registry(model_ref, policy)
    except OrchError as error:
        raise Untrusted(f"{model_ref} may not be loaded: {error}", "see catalog.trust_policy") from error
    if policy.mode is TrustMode.STRICT or policy.require_signature or policy.require_sbom:
        raise Untrusted(f"{model_ref} may not be loaded: the trust policy asks for a model of the catalog", _REMEDY)


def _objection(entry: CatalogEntry, policy: TrustPolicy, verify: Verifier) -> str:
    """Empty when there is none."""
    try:
        judge_entry(entry, policy, verify)
        strict = policy_of(entry, policy).mode is TrustMode.STRICT
    except OrchError as error:
        return f"model {entry.id}: {error}"
    if strict and entry.state not in LOADED:
        return f"model {entry.id} is {entry.state}"
    verification = entry.verification
    if strict and verification is not None and verification.result is VerifyResult.FAIL:
        return f"model {entry.id} failed its verification: {verification.message}"
    return ""


def _listed(objections: Iterable[str]) -> str:
    return "; ".join(objections)[:400]
