"""A node compares a model with the catalog: what the file is today decides, and the outcome stands in the entry."""

import asyncio
import os
from pathlib import Path

import msgspec
import pytest

from llorch_provisioner.verification import outcome
from llorch_shared import streams, subjects
from llorch_shared.bus import nats as nats_bus
from llorch_shared.catalog import Catalog
from llorch_shared.settings import NatsSettings
from llorch_shared.wire.catalog import (
    VERIFY_ANSWER_DECODER,
    CatalogEntry,
    ModelState,
    TrustPolicy,
    Verification,
    VerifyAnswer,
    VerifyModel,
    VerifyResult,
)
from llorch_shared.wire.provision import EnsureModel
from provisioner.test_service import NODE, Client, provisioner
from support.nats_server import NatsServer

DIGEST = f"sha256:{'a' * 64}"


@pytest.mark.parametrize(
    ("told", "digest", "result", "reason"),
    [
        (VerifyResult.PASS, DIGEST, VerifyResult.PASS, ""),
        (VerifyResult.WARN, DIGEST, VerifyResult.WARN, "unsigned"),
        (VerifyResult.FAIL, DIGEST, VerifyResult.FAIL, "unsigned"),
        (VerifyResult.PASS, DIGEST.replace("a", "b"), VerifyResult.FAIL, "digest_mismatch"),
        (VerifyResult.PASS, "", VerifyResult.FAIL, "unreadable"),
    ],
)
def test_a_node_makes_a_verdict_only_worse(told: VerifyResult, digest: str, result: VerifyResult, reason: str) -> None:
    said = "unsigned" if told is not VerifyResult.PASS else ""
    wish = VerifyModel(catalog_id="m", model_ref="file:/m", digest=DIGEST, result=told, reason=said)
    found = outcome(wish, digest, "n", 5)
    assert (found.result, found.reason, found.verified_ms) == (result, reason, 5)


@pytest.mark.nats
async def test_a_file_that_has_changed_fails_and_is_told_in_the_catalog(
    tmp_path: Path, nats_server: NatsServer
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"weights")
    bus = await nats_bus.connect(NatsSettings(url=nats_server.url), name="test")
    try:
        await bus.ensure(streams.base())
        catalog = Catalog(bus)
        with provisioner(tmp_path, nats_server, os.environ):
            client = Client(bus)
            plan = await client.ask(EnsureModel(model_ref=f"file:{path}"))
            event = await client.until(plan.job, lambda event: event.done)
            assert event.result is not None
            digest = event.result.digest  # type: ignore[union-attr]
            entry = CatalogEntry(
                id="m",
                digest=digest,
                source_url=f"file:{path}",
                tags=(),
                manifests=(),
                signatures=(),
                sbom=None,
                trust_policy=TrustPolicy(),
                state=ModelState.ACTIVE,
                warnings=(),
                created_ms=1,
                changed_ms=1,
            )
            await catalog.create(entry)
            wish = VerifyModel(catalog_id="m", model_ref=entry.source_url, digest=digest)

            async def verified(known: int) -> Verification:
                async with asyncio.timeout(30):
                    while True:
                        kept = await catalog.get("m")
                        assert kept is not None
                        found = kept.entry.verification
                        if found is not None and kept.seq != known:
                            assert kept.entry.last_verified_ms == found.verified_ms
                            return found
                        await asyncio.sleep(0.02)

            async def ask(wish: VerifyModel) -> VerifyAnswer:
                reply = await bus.request(subjects.provision_verify(NODE), msgspec.json.encode(wish), timeout_s=30)
                return VERIFY_ANSWER_DECODER.decode(reply.data)

            assert (await ask(wish)).started
            found = await verified(0)
            assert (found.result, found.digest, found.node_id) == (VerifyResult.PASS, digest, NODE)
            kept = await catalog.get("m")
            assert kept is not None
            path.write_bytes(b"poison!")
            while not (await ask(wish)).started:
                await asyncio.sleep(0.02)
            found = await verified(kept.seq)
            assert (found.result, found.reason) == (VerifyResult.FAIL, "digest_mismatch")
            assert not (await ask(msgspec.structs.replace(wish, model_ref="file:/none"))).started
    finally:
        await bus.close()
