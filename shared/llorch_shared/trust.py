"""Whether a model may enter the catalog, and whether what entered may still be used (ORCH-3061, 3063, 3067): for the
gateway at entry and verification, and for the provisioner before it loads. Pure: signatures are verified by who
calls."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from llorch_shared.errors import ErrorCode, OrchError
from llorch_shared.wire.catalog import CatalogEntry, CatalogModel, Signature, TrustMode, TrustPolicy, VerifyResult

ED25519: Final = "ed25519"
_SCHEME: Final = re.compile(r"^([a-z][a-z0-9+.-]*):", re.IGNORECASE)

Verifier = Callable[[Signature, str, Sequence[str]], bool]
"""(signature, what is signed, trusted keys)."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`problems` is what a permissive policy tolerates."""

    signatures: tuple[Signature, ...]
    problems: tuple[str, ...]

    @property
    def result(self) -> VerifyResult:
        return VerifyResult.WARN if self.problems else VerifyResult.PASS


def registry_of(source_url: str) -> str:
    """The host of a URL, else the scheme; a path without one is a file."""
    match = _SCHEME.match(source_url)
    if match is None:
        return "file"
    scheme, rest = match[1].lower(), source_url[match.end() :]
    if not rest.startswith("//"):
        return scheme
    host = rest[2:].partition("/")[0].rpartition("@")[2].lower()
    return host or scheme


def effective(deployment: TrustPolicy, own: TrustPolicy | None, *, strict: bool) -> TrustPolicy:
    """The stricter of each. Raises OrchError for a policy of the model's own that would permit more."""
    if own is None:
        own = TrustPolicy()
    roots = own.ca_roots or deployment.ca_roots
    if set(roots) - set(deployment.ca_roots):
        raise untrusted("trust_policy.ca_roots: only keys that this deployment trusts can be named")
    registries = own.allowed_registries or deployment.allowed_registries
    if deployment.allowed_registries and set(registries) - set(deployment.allowed_registries):
        raise untrusted("trust_policy.allowed_registries: only those that this deployment allows can be named")
    is_strict = strict or TrustMode.STRICT in (deployment.mode, own.mode)
    return TrustPolicy(
        mode=TrustMode.STRICT if is_strict else TrustMode.PERMISSIVE,
        allowed_registries=registries,
        require_signature=deployment.require_signature or own.require_signature,
        require_sbom=deployment.require_sbom or own.require_sbom,
        ca_roots=roots,
    )


def judge(model: CatalogModel, policy: TrustPolicy, verify: Verifier) -> Verdict:
    """Raises OrchError UNTRUSTED_ARTIFACT where the policy does not take it."""
    check_registry(model.source_url, policy)
    signatures = tuple(
        msgspec.structs.replace(
            one, verified=one.algo.lower() == ED25519 and verify(one, model.digest, policy.ca_roots)
        )
        for one in model.signatures
    )
    problems = []
    if not any(one.verified for one in signatures):
        problem = _unsigned(signatures, policy)
        if policy.mode is TrustMode.STRICT or policy.require_signature:
            raise untrusted(f"signatures: {problem}")
        problems.append(problem)
    if model.sbom is None and policy.require_sbom:
        raise untrusted("sbom: the trust policy requires one")
    return Verdict(signatures, tuple(problems))


def policy_of(entry: CatalogEntry, deployment: TrustPolicy) -> TrustPolicy:
    """The policy in effect now and when it was entered, whichever asks for more."""
    own = msgspec.structs.replace(entry.trust_policy, ca_roots=(), allowed_registries=())
    return effective(deployment, own, strict=entry.trust_policy.mode is TrustMode.STRICT)


def judge_entry(entry: CatalogEntry, deployment: TrustPolicy, verify: Verifier) -> Verdict:
    """What is known of it without its file. Raises OrchError UNTRUSTED_ARTIFACT."""
    model = CatalogModel(
        id=entry.id,
        digest=entry.digest,
        source_url=entry.source_url,
        signatures=entry.signatures,
        sbom=entry.sbom,
    )
    return judge(model, policy_of(entry, deployment), verify)


def check_registry(source_url: str, policy: TrustPolicy) -> None:
    """Raises OrchError UNTRUSTED_ARTIFACT where models from there are not allowed."""
    registry = registry_of(source_url)
    if policy.allowed_registries and registry not in {one.lower() for one in policy.allowed_registries}:
        raise untrusted(f"source_url: models from {registry} are not allowed here")


def _unsigned(signatures: Sequence[Signature], policy: TrustPolicy) -> str:
    if not signatures:
        return "the model is not signed"
    unknown = sorted({one.algo for one in signatures if one.algo.lower() != ED25519})
    if len(unknown) == len({one.algo for one in signatures}):
        return f"no signature can be verified here: {', '.join(unknown)[:200]}"
    return (
        "no signature is of a trusted key" if policy.ca_roots else "there is no trusted key to verify signatures with"
    )


def untrusted(message: str) -> OrchError:
    return OrchError(ErrorCode.UNTRUSTED_ARTIFACT, message)
