"""Idle flows are remembered while they are ahead of virtual time, and forgotten once."""

from llorch_scheduler.core.flow import Flow
from llorch_scheduler.core.idle import IdleFlows
from llorch_scheduler.core.quota import TenantUse
from llorch_scheduler.core.shares import Share
from llorch_shared.wire.policy import TenantLimits
from scheduler.queue_world import INTERACTIVE


def idle_flow(serial: int, tag: float) -> Flow:
    return Flow("a", INTERACTIVE, TenantUse("a", TenantLimits()), Share(), tag=tag, serial=serial)


def test_a_flow_is_forgotten_when_virtual_time_has_passed_its_tag() -> None:
    gone: list[Flow] = []
    idle = IdleFlows(gone.append)
    early, late = idle_flow(1, 10.0), idle_flow(2, 20.0)
    idle.add(late, 5.0)
    idle.add(early, 5.0)
    assert idle.first_tag == 10.0
    idle.passed(10.0)
    assert gone == [early]
    idle.passed(30.0)
    assert gone == [early, late]


def test_a_flow_that_was_busy_meanwhile_is_kept_until_its_new_tag() -> None:
    gone: list[Flow] = []
    idle = IdleFlows(gone.append)
    flow = idle_flow(1, 10.0)
    idle.add(flow, 5.0)
    flow.tag = 40.0
    idle.add(flow, 5.0)
    assert len(idle) == 1
    idle.passed(20.0)
    assert gone == []
    idle.passed(40.0)
    assert gone == [flow]


def test_a_busy_flow_is_not_forgotten_and_listed_again_when_idle() -> None:
    gone: list[Flow] = []
    idle = IdleFlows(gone.append)
    flow = idle_flow(1, 10.0)
    idle.add(flow, 5.0)
    flow.running = 1
    idle.passed(50.0)
    assert gone == []
    flow.running = 0
    idle.add(flow, 50.0)
    assert gone == [flow]
