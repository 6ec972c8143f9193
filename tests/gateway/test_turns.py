"""Whose turn it is."""

from llorch_gateway.core.turns import TurnOrder


def order_of(*come: str, at_once: int = 2, waiting_max: int = 40, alone: str = "") -> TurnOrder[str]:
    """Each letter is whose it is."""
    order: TurnOrder[str] = TurnOrder(at_once, waiting_max)
    for who in come:
        assert order.come(who[0], who, alone=who[0] in alone)
    return order


def drained(order: TurnOrder[str]) -> list[str]:
    """One turn after the other, each over before the next."""
    served = []
    while (who := order.next()) is not None:
        served.append(who)
        order.done(who[0])
    return served


def test_tenants_have_their_turns_one_after_the_other() -> None:
    assert drained(order_of("a1", "a2", "a3", "b1", "c1", "b2")) == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_no_tenant_has_all_turns_but_who_may() -> None:
    order = order_of("a1", "a2", "b1", "b2")
    assert [order.next() for _ in range(3)] == ["a1", "b1", None]
    order.done("b")
    assert [order.next() for _ in range(2)] == ["b2", None]
    order = order_of("a1", "a2", "a3", alone="a")
    assert [order.next() for _ in range(3)] == ["a1", "a2", None]
    assert drained(order_of("a1", "a2", at_once=1)) == ["a1", "a2"]


def test_so_many_wait_and_of_one_tenant_a_quarter() -> None:
    order = order_of("a1", "a2", waiting_max=8)
    assert not order.come("a", "a3", alone=False)
    assert order.come("b", "b1", alone=True)
    for number in range(2, 7):
        assert order.come("b", f"b{number}", alone=True)
    assert not order.come("c", "c1", alone=False)
    assert order.next() == "a1"
    assert not order.leave("a", "a1"), "it has its turn"
    assert order.leave("b", "b6")
    assert order.come("c", "c1", alone=False)


def test_who_leaves_has_no_turn_and_nobody_is_remembered() -> None:
    order = order_of("a1", "a2", "b1")
    assert order.leave("a", "a1")
    assert order.leave("b", "b1")
    assert drained(order) == ["a2"]
    assert [len(each) for each in (order._waiting, order._running, order._most)] == [0, 0, 0]
