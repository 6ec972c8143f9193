"""The error table, the envelope, and what a refusal tells a client."""

import msgspec
import pytest

from llorch_shared.errors import (
    ERRORS,
    MESSAGE_CHARS_MAX,
    POLICY_LABELS,
    RESET_DETAILS,
    ErrorBody,
    ErrorCode,
    OrchError,
    PolicyLabel,
    Refused,
    ResetDetail,
    invalid,
    not_found,
)
from llorch_shared.wire.policy import FullPolicy

KINDS = {
    "INVALID_PARAMS": 400,
    "DEADLINE_UNMET": 400,
    "UNTRUSTED_ARTIFACT": 400,
    "MODEL_DEPRECATED": 403,
    "ADMISSION_REJECT": 429,
    "QUEUE_FULL_DROP_LRU": 429,
    "POOL_UNREADY": 503,
    "POOL_UNAVAILABLE": 503,
    "REPLICA_EXHAUSTED": 503,
    "DECODE_TIMEOUT": 500,
    "WORKER_RESET": 500,
    "INTERNAL": 500,
    "MISSING_TOKEN": 401,
    "BAD_TOKEN": 401,
    "NON_LOOPBACK_WITHOUT_TOKEN": 403,
}
"""Codes and statuses as REQUIREMENTS 2.5 has them."""
OPENAI = {"CANCELLED": 410}
"""What an answer on the OpenAI routes needs beyond them: there a cancelled task is no answer."""


def test_the_codes_and_their_statuses_are_those_of_the_requirements() -> None:
    assert {code.value: facts.status for code, facts in ERRORS.items()} == KINDS | OPENAI


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_code_has_facts_and_a_sentence(code: ErrorCode) -> None:
    facts = ERRORS[code]
    assert facts.meaning.endswith(".")
    error = OrchError(code, "no")
    assert (error.status, error.code, error.body.retriable) == (facts.status, code, facts.retriable)


@pytest.mark.parametrize("code", list(ErrorCode))
def test_what_is_busy_or_away_may_be_retried_and_what_is_wrong_may_not(code: ErrorCode) -> None:
    facts = ERRORS[code]
    if facts.status in (429, 503):
        assert facts.retriable
    if 400 <= facts.status < 429:
        assert not facts.retriable


def test_a_refusal_carries_all_that_429_asks_for() -> None:
    refused = Refused("full", policy_label=PolicyLabel.REJECT, retry_after_ms=2000, engine="mock", pool_id="p")
    assert refused.status == 429
    assert msgspec.to_builtins(refused.body) == {
        "code": "ADMISSION_REJECT",
        "message": "full",
        "engine": "mock",
        "retriable": True,
        "retry_after_ms": 2000,
        "policy_label": "reject",
        "pool_id": "p",
    }


def test_an_unknown_thing_is_404_with_the_code_of_bad_parameters() -> None:
    error = not_found("task x")
    assert (error.status, error.code) == (404, ErrorCode.INVALID_PARAMS)
    assert "task x" in error.body.message
    assert invalid("too big", status=413).status == 413


def test_a_message_that_repeats_what_a_client_sent_is_bounded() -> None:
    error = invalid("unknown field " + "x" * 1_000_000)
    assert len(error.body.message) == len(str(error)) == MESSAGE_CHARS_MAX


def test_unknown_fields_of_an_envelope_from_a_newer_service_are_ignored() -> None:
    body = msgspec.json.decode(b'{"code":"INTERNAL","message":"m","new_field":1}', type=ErrorBody)
    assert body.code is ErrorCode.INTERNAL


def test_an_error_may_say_that_this_one_is_not_worth_a_retry() -> None:
    assert OrchError(ErrorCode.POOL_UNAVAILABLE, "gone for good", retriable=False).body.retriable is False


def test_every_policy_of_a_full_queue_has_its_label_and_every_label_a_meaning() -> None:
    assert set(FullPolicy) <= set(PolicyLabel)
    assert list(POLICY_LABELS) == list(PolicyLabel)
    assert list(RESET_DETAILS) == list(ResetDetail)
