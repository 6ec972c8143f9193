"""What is forbidden counts while it lasts. Times are arguments."""

from llorch_shared.bus.nats_denials import DENIED_S, Denials

PUBLISH = 'permissions violation for publish to "llorch.adm.p.batch.t"'
LISTEN = 'permissions violation for subscription to "llorch.tok.gw-1.*" (sid "2")'


def test_a_refused_publish_counts_for_a_while_after_it_was_last_heard() -> None:
    denials = Denials()
    assert denials.problem(0) == ""
    assert denials.heard(PUBLISH, 0) == ("llorch.adm.p.batch.t", False, True)
    assert denials.heard(PUBLISH, 5) == ("llorch.adm.p.batch.t", False, False)
    assert denials.problem(5 + DENIED_S - 0.1) == PUBLISH
    assert denials.problem(5 + DENIED_S) == ""
    assert denials.heard(PUBLISH, 6 + DENIED_S)[2], "it is told again when it was over"


def test_a_subscription_is_known_by_its_subject() -> None:
    denials = Denials()
    assert denials.heard(LISTEN, 0) == ("llorch.tok.gw-1.*", True, True)
    assert denials.of("llorch.tok.GW-1.*") == LISTEN
    denials.forget("llorch.tok.gw-1.*")
    assert denials.of("llorch.tok.gw-1.*") == ""
    assert denials.problem(1) == LISTEN
    denials.clear()
    assert denials.problem(1) == ""


def test_words_that_nobody_foresaw_are_a_problem_too() -> None:
    denials = Denials()
    assert denials.heard("permissions violation", 0) == ("permissions violation", False, True)
    assert denials.problem(1) == "permissions violation"
