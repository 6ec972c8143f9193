"""A pool's policy as dotted keys."""

import pytest

from llorch_shared.pool_keys import BadAssignment, assigned, changes, known_keys, rows
from llorch_shared.wire.policy import AdmissionSpec, FairnessSpec, QueueSpec, TenantSpec
from llorch_shared.wire.provisioning_spec import ProvisioningSpec
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Engine

POOL = PoolSpec(id="chat", engine=Engine.MOCK, model="m")


def said(before: PoolSpec | None, after: PoolSpec | None) -> list[str]:
    return [str(change) for change in changes(before, after)]


def set_(*assignments: str) -> list[str]:
    """What the assignments change in a pool without policy of its own."""
    return said(POOL, assigned(POOL, assignments))


@pytest.mark.parametrize("with_defaults", [False, True])
def test_the_environment_of_an_engine_is_never_shown(with_defaults: bool) -> None:
    pool = assigned(POOL, ["provisioning.env.TOKEN=hunter2"])
    shown = {row.key: row.value for row in rows(pool, with_defaults=with_defaults)}
    assert shown["provisioning.env.TOKEN"] == "(hidden)"
    assert "hunter2" not in str(shown)


def test_a_value_takes_the_type_of_its_key() -> None:
    assert set_("queue.capacity=64") == ["queue.capacity: 256 -> 64"]
    assert set_("deadlines.min_on_time_probability=0.7") == ["deadlines.min_on_time_probability: 0.5 -> 0.7"]
    assert set_("queue.full_policy=drop-lru") == ["queue.full_policy: reject -> drop-lru"]
    assert set_("require_same_engine_version=false") == ["require_same_engine_version: true -> false"]
    assert set_("devices=[0,1]", 'nodes=["a"]') == ["devices: all -> [0,1]", 'nodes: none -> ["a"]']
    assert set_("devices=cpu") == ["devices: all -> cpu"]
    assert set_("preemption.hard_requirements.protect_priorities=[]") == [
        'preemption.hard_requirements.protect_priorities: ["interactive"] -> none'
    ]


def test_tenants_and_priorities_are_reached_by_name_and_made_when_missing() -> None:
    pool = assigned(POOL, ["admission.fairness.tenants.team-a.weight=5", "admission.priorities.batch.weight=2"])
    assert pool.admission.fairness.tenants == (TenantSpec(id="team-a", weight=5),)
    assert [(each.name, each.weight) for each in pool.admission.priorities] == [("batch", 2)]
    more = assigned(pool, ["admission.fairness.tenants.team-a.rps=2.5", "admission.fairness.tenants.b.kv_mb=100"])
    assert [tenant.id for tenant in more.admission.fairness.tenants] == ["team-a", "b"]
    assert said(pool, more) == [
        "admission.fairness.tenants.team-a.rps: none -> 2.5",
        "admission.fairness.tenants.b.weight: none -> 1",
        "admission.fairness.tenants.b.kv_mb: none -> 100",
    ]
    gone = assigned(more, ["admission.fairness.tenants.team-a=null"])
    assert [tenant.id for tenant in gone.admission.fairness.tenants] == ["b"]


def test_a_section_that_is_off_is_switched_on_by_its_keys_and_off_by_null() -> None:
    pool = assigned(POOL, ["breaker.start_ms=2000", "canary.engine_version=b9", "canary.percent=5"])
    assert pool.breaker is not None
    assert (pool.breaker.start_ms, pool.breaker.broken_share) == (2_000, 0.5)
    assert assigned(pool, ["breaker=null", "canary=null"]) == POOL


def test_null_takes_an_optional_bound_away() -> None:
    pool = assigned(POOL, ["queue.tenant_capacity=3"])
    assert assigned(pool, ["queue.tenant_capacity=null"]) == POOL


def test_null_takes_away_what_is_left_out_where_it_says_nothing() -> None:
    pool = assigned(POOL, ['workloads=["embedding"]', "pooling=last"])
    assert (pool.serves, pool.pooling) == (("embedding",), "last")
    assert assigned(pool, ["workloads=null", "pooling=null"]) == POOL
    (row,) = [row for row in rows(POOL, with_defaults=True) if row.key == "workloads"]
    assert (row.value, row.was_set) == (("completion",), False), "what is in effect"


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("queue.capacty=64", "did you mean 'queue.capacity'"),
        ("capacity=64", "did you mean 'queue.capacity'"),
        ("deadlines.min_on_time=1", "did you mean 'deadlines.min_on_time_probability'"),
        ("admission.fairness.tenants.a.wieght=2", "did you mean 'admission.fairness.tenants.<name>.weight'"),
        ("queue.capacity.more=1", "no key"),
        ("zzz=1", "no key 'zzz'"),
        ("queue.capacity", "is not KEY=VALUE"),
        ("queue.capacity=-1", "`queue.capacity`"),
        ("queue.capacity=many", "`queue.capacity`"),
        ("queue.full_policy=drop", "`queue.full_policy`"),
        ("canary.percent=5", "engine_version"),
        ("devices=[0", "is not JSON"),
        ("id=other", "names the pool"),
        ("admission.fairness.tenants.a=5", "set one of its keys"),
        ("admission.fairness.tenants.NO WAY.weight=5", "tenants"),
        ("", "is not KEY=VALUE"),
        ("=", "no key"),
        (".=1", "no key"),
    ],
)
def test_what_is_no_key_or_no_value_is_refused_and_says_what_is_near(assignment: str, words: str) -> None:
    with pytest.raises(BadAssignment) as refused:
        assigned(POOL, [assignment])
    assert words in str(refused.value)


def test_the_environment_of_an_engine_is_never_told() -> None:
    before = PoolSpec(id="a", engine=Engine.MOCK, model="m", provisioning=ProvisioningSpec(env={"TOKEN": "old-secret"}))
    after = assigned(before, ["provisioning.env.TOKEN=new-secret", "provisioning.env.MORE=x"])
    assert after.provisioning.env == {"TOKEN": "new-secret", "MORE": "x"}
    assert said(before, after) == [
        "provisioning.env.TOKEN: (hidden) -> (hidden)",
        "provisioning.env.MORE: none -> (hidden)",
    ]


def test_rows_hold_what_was_set_and_with_defaults_what_is_in_effect() -> None:
    fairness = FairnessSpec(tenants=(TenantSpec(id="t", weight=3),))
    pool = PoolSpec(
        id="a",
        engine=Engine.MOCK,
        model="m",
        queue=QueueSpec(capacity=9),
        admission=AdmissionSpec(fairness=fairness),
    )
    assert {row.key: row.value for row in rows(pool, with_defaults=False)} == {
        "id": "a",
        "engine": "mock",
        "model": "m",
        "queue.capacity": 9,
        "admission.fairness.tenants.t.weight": 3,
    }
    everything = {row.key: (row.value, row.was_set) for row in rows(pool, with_defaults=True)}
    assert everything["queue.capacity"] == (9, True)
    assert everything["waiting.grace_ms"] == (30_000, False)
    assert everything["admission.priorities.interactive.weight"] == (8, False)
    assert everything["admission.priorities.batch.queue_capacity"] == (9, False)
    assert everything["admission.priorities.batch.rate_limit_rps"] == (None, False)
    assert everything["breaker.start_ms"] == everything["canary.percent"] == (None, False)
    assert {"admission.priorities", "breaker", "canary"}.isdisjoint(everything)


def test_every_key_that_is_shown_can_be_named() -> None:
    known = set(known_keys())
    plain = [row.key for row in rows(POOL, with_defaults=True) if not row.key.startswith("admission.priorities")]
    assert {key for key in plain if key not in known} == {
        "id",
        "admission.fairness.tenants",
        "provisioning.env",
    }
