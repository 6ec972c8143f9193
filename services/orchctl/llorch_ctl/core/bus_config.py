"""The users of the bus as a part of nats-server's configuration: accounts, permissions, what tenants import. Pure."""

import json
from collections.abc import Iterable, Mapping

from llorch_shared.bus_accounts import SERVICES, account_of
from llorch_shared.bus_users import Import, User, tenant_services, tenant_streams


def rendered(users: Iterable[User], keys: Mapping[str, str]) -> str:
    """`keys`: public nkeys by the names of users."""
    mine = list(users)
    tenants = sorted(user.tenant for user in mine if user.tenant)
    lines = ["accounts {", f"  {SERVICES} {{", "    jetstream: enabled", "    users: ["]
    lines += [f"      {_user(user, keys[user.name])} # {user.name}" for user in mine if not user.tenant]
    lines += ["    ]", "    exports: ["]
    for tenant in tenants:
        only = f"accounts: [{_quoted(account_of(tenant))}]"
        lines += [f"      {{ service: {_quoted(each.exported)}, {only} }}" for each in tenant_services(tenant)]
        lines += [f"      {{ stream: {_quoted(each.exported)}, {only} }}" for each in tenant_streams(tenant)]
    lines += ["    ]", "  }"]
    for user in mine:
        if user.tenant:
            lines += _tenant(user.tenant, keys[user.name])
    return "\n".join([*lines, "}"]) + "\n"


def _user(user: User, key: str) -> str:
    if user.publish == user.subscribe == (">",):
        return f"{{ nkey: {key} }}"
    # Each permission of a request's answer is for one message and is forgotten after the longest that an answer takes.
    answers = ', allow_responses: { max: 1, expires: "1m" }' if user.answers else ""
    publish, subscribe = _listed(user.publish), _listed(user.subscribe)
    return (
        f"{{ nkey: {key}, permissions: "
        f"{{ publish: {{ allow: {publish} }}, subscribe: {{ allow: {subscribe} }}{answers} }} }}"
    )


def _tenant(tenant: str, key: str) -> list[str]:
    imports = [
        *(("service", each) for each in tenant_services(tenant)),
        *(("stream", each) for each in tenant_streams(tenant)),
    ]
    return [
        f"  {account_of(tenant)} {{",
        f"    users: [ {{ nkey: {key} }} ]",
        "    imports: [",
        *(f"      {{ {_imported(kind, each)} }}" for kind, each in imports),
        "    ]",
        "  }",
    ]


def _imported(kind: str, each: Import) -> str:
    known_as = "" if each.local == each.exported else f", to: {_quoted(each.local)}"
    return f"{kind}: {{ account: {SERVICES}, subject: {_quoted(each.exported)} }}{known_as}"


def _listed(filters: Iterable[str]) -> str:
    return f"[{', '.join(_quoted(each) for each in filters)}]"


def _quoted(text: str) -> str:
    return json.dumps(text)
