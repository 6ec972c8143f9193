"""What a later attempt does about a stream whose beginning readers already have.

    nothing was sent                    Begin      as the first attempt would
    all of it was sent                  Complete   there is nothing left to generate
    strict                              Repeat     run again; what was sent is compared and not sent again
    sampled, failover resume            GoOn       from the prompt and the text so far, with the next index
    sampled, failover restart           Anew       from the prompt, with the next index; what was sent is void
    embedding, rerank                   GoOn       with the input behind those whose results were sent
    anything else                       Refuse     the stream ends with WORKER_RESET

With tools no stream goes on or is repeated: what was sent of a call is pieces that only belong to their own run.

What was sent must be known whole: whoever goes on from a part of it doubles or loses tokens. Only a strict task may
run without knowing, and only where it is sure to say the same again.
"""

from dataclasses import dataclass

import msgspec

from llorch_poold.core.prefix import Sent
from llorch_shared.errors import RESET_DETAILS, ResetDetail
from llorch_shared.wire.task import Determinism, Failover, OutputMode, TaskRequest, Workload


@dataclass(frozen=True, slots=True)
class Begin:
    """Run as if it were the first attempt."""


@dataclass(frozen=True, slots=True)
class Repeat:
    """Run again from the start and compare."""


@dataclass(frozen=True, slots=True)
class Complete:
    """`restarted_at` as the earlier attempts said it."""

    restarted_at: int | None = None


@dataclass(frozen=True, slots=True)
class GoOn:
    """`first`: index of the first new token."""

    first: int
    request: TaskRequest
    """What the engine is asked for: the text so far behind the prompt, and the tokens that are left. Of a workload with
    inputs the whole request: results do not depend on each other."""


@dataclass(frozen=True, slots=True)
class Anew:
    """`first`: index of the first new token, before which everything is void."""

    first: int


@dataclass(frozen=True, slots=True)
class Refuse:
    detail: ResetDetail

    @property
    def message(self) -> str:
        return f"the engine was lost and the stream does not go on. {RESET_DETAILS[self.detail]}"


Plan = Begin | Repeat | Complete | GoOn | Anew | Refuse


def plan(request: TaskRequest, sent: Sent, *, known: bool, same_class: bool) -> Plan:
    """`known`: `sent` is certainly all that readers can have. `same_class`: this replica gives the tokens that the
    earlier attempts gave for the same seed."""
    known = known and sent.is_whole
    strict = request.determinism is Determinism.STRICT
    if known and not sent.tokens:
        return Begin()
    if request.failover is Failover.FAIL:
        return Refuse(ResetDetail.FAILOVER_FAIL if sent.tokens else ResetDetail.TOKENS_LOST)
    if request.workload is not Workload.COMPLETION:
        return _behind(request, sent) if known else Refuse(ResetDetail.TOKENS_LOST)
    if strict and not request.tools:
        return Repeat() if known or same_class else Refuse(ResetDetail.TOKENS_LOST)
    if not known:
        return Refuse(ResetDetail.TOKENS_LOST)
    if sent.count - (sent.restarted_at or 0) >= request.max_tokens:
        return Complete(sent.restarted_at)
    if request.failover is Failover.RESTART:
        return Anew(sent.count)
    if request.output_mode is not OutputMode.TEXT or request.tools:
        return Refuse(ResetDetail.FAILOVER_REFUSED)
    return GoOn(
        sent.count,
        msgspec.structs.replace(
            request, prompt=(request.prompt or "") + sent.text, max_tokens=request.max_tokens - sent.count
        ),
    )


def _behind(request: TaskRequest, sent: Sent) -> Plan:
    return Complete() if sent.count >= len(request.inputs or ()) else GoOn(sent.count, request)
