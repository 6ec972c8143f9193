"""Asks the nodes that hold a model to compare it with its entry. Signatures are looked at here, files there; the node
writes the outcome, which can only be worse than what is told to it."""

import asyncio
import logging
from typing import Final

import msgspec

from llorch_gateway.snapshot import Snapshot
from llorch_shared import subjects
from llorch_shared.bus.port import Bus, BusError
from llorch_shared.errors import OrchError
from llorch_shared.signatures import verify
from llorch_shared.trust import judge_entry
from llorch_shared.wire.catalog import (
    VERIFY_ANSWER_DECODER,
    CatalogEntry,
    TrustPolicy,
    VerifyModel,
    VerifyResult,
)

log = logging.getLogger(__name__)

ASK_TIMEOUT_S: Final = 2.0


class Verifications:
    def __init__(self, bus: Bus, snapshot: Snapshot) -> None:
        self._bus: Final = bus
        self._snapshot: Final = snapshot

    async def start(self, entry: CatalogEntry, policy: TrustPolicy) -> list[str]:
        """Ids of the nodes that have begun."""
        pools = [pool for pool in self._snapshot.pools.values() if pool.model == entry.source_url]
        nodes = {replica.node_id for pool in pools for replica in self._snapshot.replicas.get(pool.id, ())}
        wish = wish_of(entry, policy, engine=pools[0].engine if pools else "")
        answers = await asyncio.gather(*(self._ask(node, wish) for node in nodes))
        return sorted(node for node, began in zip(nodes, answers, strict=True) if began)

    async def _ask(self, node: str, wish: VerifyModel) -> bool:
        subject = subjects.provision_verify(node)
        try:
            reply = await self._bus.request(subject, msgspec.json.encode(wish), timeout_s=ASK_TIMEOUT_S)
            answer = VERIFY_ANSWER_DECODER.decode(reply.data)
        except (BusError, msgspec.MsgspecError) as error:
            log.info("node %s does not verify %s: %s", node, wish.catalog_id, error)
            return False
        if not answer.started:
            log.info("node %s does not verify %s: %s", node, wish.catalog_id, answer.problem)
        return answer.started


def wish_of(entry: CatalogEntry, policy: TrustPolicy, *, engine: str) -> VerifyModel:
    """What is known of the entry without its file, by the policy in effect now and when it was entered."""
    result, reason, message = VerifyResult.PASS, "", ""
    try:
        verdict = judge_entry(entry, policy, verify)
        if verdict.problems:
            result, reason, message = verdict.result, "unsigned", "; ".join(verdict.problems)
    except OrchError as error:
        result, reason, message = VerifyResult.FAIL, "policy", str(error)
    return VerifyModel(
        catalog_id=entry.id,
        model_ref=entry.source_url,
        digest=entry.digest,
        engine=engine,
        result=result,
        reason=reason,
        message=message,
    )
