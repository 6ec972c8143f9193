"""How often a model that may not be loaded is looked at again."""

from llorch_poold.core.trust_look import COSTLY_MAX_S, FIRST_S, MAX_S, TrustLook


def pauses(look: TrustLook, *, costly: bool, count: int = 20) -> list[float]:
    found = []
    for _ in range(count):
        look.refused(costly=costly)
        found.append(look.pause_s())
    return found


def test_the_catalog_is_looked_at_soon_and_then_each_minute() -> None:
    assert pauses(TrustLook(), costly=False)[:7] == [2, 4, 8, 16, 32, 60, 60]


def test_a_file_with_other_bytes_is_not_fetched_again_all_the_time() -> None:
    found = pauses(TrustLook(), costly=True)
    assert found[0] == FIRST_S
    assert sum(pause == COSTLY_MAX_S for pause in found) == len(found) - 11


def test_what_was_refused_by_its_bytes_and_is_refused_by_the_catalog_now_is_looked_at_each_minute() -> None:
    look = TrustLook()
    pauses(look, costly=True)
    assert pauses(look, costly=False, count=1) == [MAX_S]
    look.permitted()
    assert look.pause_s() == FIRST_S
