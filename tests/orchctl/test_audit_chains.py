"""Whole chains are never complained about; whatever is done to one is found."""

from hypothesis import given, settings
from hypothesis import strategies as st

from llorch_ctl.core.audit_chains import Chains
from llorch_ctl.core.findings import Fault, Findings, Violation
from llorch_shared import subjects
from llorch_shared.audit_chain import Chain, alone, entry
from llorch_shared.wire.audit import AuditEvent, AuditRecord

Stored = list[tuple[int, str, bytes]]
"""(sequence, subject, payload) as a stream holds it."""

EVENTS = st.sampled_from([AuditEvent.PLACED, AuditEvent.RUNNING, AuditEvent.DONE, AuditEvent.BREAKER])


@st.composite
def streams(draw: st.DrawFn, *, closed: bool | None = None) -> Stored:
    """What one to three writers wrote, batches mixed, each life closed or not."""
    chains = [Chain(f"scheduler/{number}") for number in range(draw(st.integers(1, 3)))]
    stored: list[tuple[str, bytes]] = []
    for turn in range(draw(st.integers(len(chains), 8))):
        chain = chains[turn % len(chains)]
        events = draw(st.lists(EVENTS, min_size=1, max_size=3))
        stored += chain.link([entry(record(event, f"t{turn}", chain.actor)) for event in events])
        chain.stored()
    for chain in chains:
        if draw(st.booleans()) if closed is None else closed:
            stored += chain.link([chain.closing(2)])
            chain.stored()
    return numbered(stored)


def record(event: AuditEvent, task: str, actor: str) -> AuditRecord:
    return AuditRecord(event=event, task_id=task, at_ms=1, actor=actor, tenant="ténant", detail={"reason": "r"})


def numbered(stored: list[tuple[str, bytes]]) -> Stored:
    return [(seq, subject, data) for seq, (subject, data) in enumerate(stored, start=1)]


def look(stored: Stored, *, cut: bool = False) -> list[Violation]:
    found = Findings()
    chains = Chains(found, cut=cut)
    for seq, subject, data in stored:
        chains.read(seq, subject, data)
    chains.finish()
    assert chains.unchained == 0
    return found.kept


def writer_of(message: tuple[int, str, bytes]) -> bytes:
    return message[2].partition(b',"writer":')[2].partition(b",")[0]


@given(streams())
def test_whole_chains_are_clean(stored: Stored) -> None:
    assert look(stored) == []


@given(streams(), st.data())
def test_a_beginning_that_is_not_kept_is_no_violation(stored: Stored, data: st.DataObject) -> None:
    first = data.draw(st.integers(1, len(stored) - 1)) if len(stored) > 1 else 0
    assert look(stored[first:], cut=True) == []


@settings(max_examples=400)
@given(streams(), st.data())
def test_one_flipped_byte_is_found_and_named(stored: Stored, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(stored) - 1))
    seq, subject, payload = stored[place]
    at = data.draw(st.integers(0, len(payload) - 1))
    flipped = payload[:at] + bytes([payload[at] ^ data.draw(st.integers(1, 255))]) + payload[at + 1 :]
    found = look([*stored[:place], (seq, subject, flipped), *stored[place + 1 :]])
    assert (seq, subject) in {(violation.seq, violation.subject) for violation in found}


@given(streams(), st.data())
def test_a_record_at_another_subject_is_found(stored: Stored, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(stored) - 1))
    seq, _, payload = stored[place]
    moved = (seq, subjects.audit("placed", "elsewhere"), payload)
    found = look([*stored[:place], moved, *stored[place + 1 :]])
    assert {Fault.MISPLACED, Fault.ALTERED} <= {violation.fault for violation in found}


@given(streams(), st.data())
def test_a_removed_record_is_found_unless_it_is_the_last_of_its_writer(stored: Stored, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(stored) - 1))
    rest = [*stored[:place], *stored[place + 1 :]]
    is_tail = all(writer_of(each) != writer_of(stored[place]) for each in stored[place + 1 :])
    found = look(rest)
    assert [violation.fault for violation in found] == ([] if is_tail else [Fault.MISSING])


@given(streams(), st.data())
def test_a_record_that_is_there_twice_is_found(stored: Stored, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(stored) - 1))
    _, subject, payload = stored[place]
    at = data.draw(st.integers(place + 1, len(stored)))
    doubled = [*stored[:at], (0, subject, payload), *stored[at:]]
    found = look(numbered([(subject, payload) for _, subject, payload in doubled]))
    assert [(violation.fault, violation.seq) for violation in found] == [(Fault.DOUBLED, at + 1)]


@given(streams(), st.data())
def test_two_records_of_a_writer_that_changed_places_are_found(stored: Stored, data: st.DataObject) -> None:
    first, second = sorted(data.draw(st.integers(0, len(stored) - 1)) for _ in range(2))
    if first == second or writer_of(stored[first]) != writer_of(stored[second]):
        return
    swapped = [(subject, payload) for _, subject, payload in stored]
    swapped[first], swapped[second] = swapped[second], swapped[first]
    assert Fault.OUT_OF_ORDER in {violation.fault for violation in look(numbered(swapped))}


def test_a_record_linked_to_another_than_the_one_before_is_found() -> None:
    chain = Chain("scheduler/1")
    stored = chain.link([entry(record(AuditEvent.PLACED, "a", "scheduler/1"))])
    chain.stored()
    chain.hash = "0" * 32
    stored += chain.link([entry(record(AuditEvent.PLACED, "b", "scheduler/1"))])
    assert [violation.fault for violation in look(numbered(stored))] == [Fault.BROKEN_LINK]


def test_a_closing_record_that_counts_wrong_or_is_not_the_last_is_found() -> None:
    chain = Chain("scheduler/1")
    some = entry(record(AuditEvent.PLACED, "a", "scheduler/1"))
    stored = chain.link([some, chain.closing(1, more=2), some])
    assert [violation.fault for violation in look(numbered(stored))] == [Fault.MISCOUNTED, Fault.AFTER_CLOSE]


def test_records_of_an_earlier_release_are_counted_and_no_violation() -> None:
    found = Findings()
    chains = Chains(found, cut=False)
    subject, old = entry(record(AuditEvent.PLACED, "a", "scheduler/1"))
    chains.read(1, subject, old)
    for seq, message in enumerate(alone(record(AuditEvent.DONE, "a", "poold/1")), start=2):
        chains.read(seq, *message)
    chains.finish()
    assert (found.total, chains.unchained, chains.chained, chains.closed) == (0, 1, 2, 1)


def test_a_newer_event_in_its_chain_is_no_violation() -> None:
    chain = Chain("gateway/9")
    content = b'{"event":"charged","task_id":"t","at_ms":1,"actor":"gateway/9","budget":{"left":1}}'
    assert look(numbered(chain.link([(subjects.audit("charged", "t"), content)]))) == []


def test_garbage_is_found_and_what_is_kept_of_a_flood_is_bounded() -> None:
    found = Findings()
    chains = Chains(found, cut=False)
    for seq in range(1, 2001):
        chains.read(seq, "llorch.aud.placed.t", b"\xff")
    assert (found.total, len(found.kept), found.kept[0].fault) == (2000, 1000, Fault.UNREADABLE)
