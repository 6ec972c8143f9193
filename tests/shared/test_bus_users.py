"""Users of the bus against the contract: whoever publishes or reads a subject has a user that may."""

import pytest

from llorch_shared import bus_users, streams, subjects
from llorch_shared.bus_accounts import UnknownAccount, account_of, asking_tenant
from llorch_shared.bus_users import OPERATOR, SERVER, TENANTS, User
from llorch_shared.subject_table import SUBJECTS, Delivery, Subject

NODE = "n1"
BY_OTHER_WAYS = {subjects.CANCEL, subjects.CANCEL_SIGNAL, subjects.OBJECT_CHUNKS, subjects.OBJECT_ENTRY}
"""What a bus client in the services' account publishes, and a tenant asks a gateway for."""


def user(role: str) -> User:
    if role == OPERATOR:
        return bus_users.services([])[0]
    return bus_users.user(role, NODE if role in bus_users.ON_NODES else "")


def permits(filters: tuple[str, ...], subject: str) -> bool:
    """As the server does; `subject` may have wildcards of its own."""
    return any(_covers(each.split("."), subject.split(".")) for each in filters)


def _covers(wide: list[str], subject: list[str]) -> bool:
    for index, part in enumerate(wide):
        if part == ">":
            return len(subject) > index
        if index >= len(subject) or part not in ("*", subject[index]):
            return False
    return len(wide) == len(subject)


def example(pattern: str, key: str) -> str:
    return ".".join(
        {"{node}": NODE, "{key}": key}.get(part, "x" if part.startswith("{") else part) for part in pattern.split(".")
    )


KEYS = {
    ("poold", subjects.REGISTRY): subjects.replica_key(NODE, "p-n1-1"),
    ("scheduler", subjects.REGISTRY): subjects.lease_key(3),
    ("poold", subjects.SPEC): subjects.reload_key("p"),
    ("scheduler", subjects.SPEC): subjects.drain_key("p"),
    ("provisioner", subjects.CATALOG): subjects.model_key("m"),
}


@pytest.mark.parametrize("row", SUBJECTS, ids=lambda row: row.pattern)
def test_who_publishes_a_subject_may(row: Subject) -> None:
    for role in set(row.publishers) - {SERVER}:
        subject = example(row.pattern, KEYS.get((role, row.pattern), "some.key"))
        if role == TENANTS:
            own = example(row.pattern, "").replace(".x.x.x", ".x.x.t")
            assert row.pattern in BY_OTHER_WAYS or permits(
                tuple(each.local for each in bus_users.tenant_services("t")), own
            )
        else:
            assert permits(user(role).publish, subject), f"{role} may not publish {subject}"


@pytest.mark.parametrize("row", SUBJECTS, ids=lambda row: row.pattern)
def test_who_reads_a_subject_may(row: Subject) -> None:
    for role in set(row.consumers) - {TENANTS}:
        who = user(role)
        if row.delivery in (Delivery.SIGNAL, Delivery.REQUEST):
            assert permits(who.subscribe, example(row.pattern, "some.key")), f"{role} may not hear {row.pattern}"
            assert who.answers or row.delivery is Delivery.SIGNAL or role == OPERATOR
        elif row.pattern == subjects.PLACEMENT:
            assert permits(who.publish, "$JS.API.CONSUMER.MSG.NEXT.PLC.p_p-n1-1")
        else:
            name = stream_of(row.pattern)
            assert permits(who.publish, f"$JS.API.DIRECT.GET.{name}"), f"{role} may not read {name}"
            assert permits(who.publish, f"$JS.API.DIRECT.GET.{name}.{example(row.pattern, 'some.key')}")


def stream_of(pattern: str) -> str:
    if pattern == subjects.ADMISSION:
        return "ADM_p_batch"
    subject = example(pattern, "some.key")
    (name,) = (each.name for each in streams.base().streams if permits(tuple(each.config["subjects"]), subject))
    return name


def test_every_service_of_the_contract_has_a_user() -> None:
    named = {role for row in SUBJECTS for role in (*row.publishers, *row.consumers)}
    assert named == {*bus_users.SINGLE, *bus_users.ON_NODES, OPERATOR, TENANTS, SERVER}


@pytest.mark.parametrize("role", [*bus_users.SINGLE, *bus_users.ON_NODES])
def test_nobody_but_the_operator_may_end_a_stream_or_listen_to_others(role: str) -> None:
    who = user(role)
    for verb in ("DELETE", "PURGE", "RESTORE", "SNAPSHOT"):
        assert not permits(who.publish, f"$JS.API.STREAM.{verb}.RUN")
    assert permits(who.publish, "$JS.API.STREAM.UPDATE.RUN") is (role == "scheduler")
    assert permits(who.publish, "$JS.API.STREAM.CREATE.RUN") is (role in ("scheduler", "gateway"))
    others = {f"_INBOX_{each}.x" for each in bus_users.SINGLE if each != role} | {"_INBOX_poold.n2.x", "_INBOX.x"}
    assert not [each for each in others if permits(who.subscribe, each)]
    assert not permits(who.subscribe, subjects.registry("x"))


def test_a_node_is_kept_to_its_own_keys_and_orders() -> None:
    node, helper = user("poold"), user("provisioner")
    assert permits(node.publish, subjects.registry(subjects.node_key(NODE)))
    for key in (subjects.node_key("n2"), subjects.replica_key("n2", "p-n2-1"), subjects.lease_key(0)):
        assert not permits(node.publish, subjects.registry(key))
    assert not permits(node.publish, subjects.provision_model("n2"))
    assert not permits(node.subscribe, subjects.preempt("n2"))
    assert not permits(helper.publish, subjects.run("t"))
    assert not permits(helper.subscribe, subjects.provision_model("n2"))


def test_the_names_of_users_say_whose_they_are() -> None:
    users = (*bus_users.services(["n1", "poold-n2"]), *bus_users.tenants(["acme"]))
    assert bus_users.owners(user.name for user in users) == (["n1", "poold-n2"], ["acme"])
    assert bus_users.owners(["gateway", "provisioner-n3", "notes"]) == (["n3"], [])


@pytest.mark.parametrize("name", ["", "a.b", "A", "t" * 60, "*"])
def test_names_that_can_be_no_user_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="use a-z"):
        bus_users.tenants([name])
    if len(name) < 60:
        with pytest.raises(ValueError, match="use a-z"):
            bus_users.services([name])


def test_a_tenant_is_told_by_its_account_alone() -> None:
    header = "Nats-Request-Info"
    assert asking_tenant({}) is None
    assert asking_tenant({header: f'{{"acc":"{account_of("acme")}","rtt":1}}'}) == "acme"
    for info in ("", "{", "{}", '{"acc":"LLORCH"}', '{"acc":"TENANT_"}', '{"acc":"TENANT_a.b"}', '{"acc":7}'):
        with pytest.raises(UnknownAccount):
            asking_tenant({header: info})


def test_a_tenant_hears_and_queues_its_own_tasks_only() -> None:
    heard, (asked, queued) = bus_users.tenant_streams("acme"), bus_users.tenant_services("acme")
    assert heard == (("llorch.tok.bus-acme.*", "llorch.tok.bus-acme.*"),)
    assert asked == ("llorch.api.>", "llorch.api.>")
    assert queued == (f"llorch.adm.*.*.{account_of('acme')}", "llorch.adm.*.*.acme")
    assert subjects.bus_lane("t" * 60) == subjects.BUS_LANE
