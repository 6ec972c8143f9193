"""Accounts of the bus: one of the services, and one of each tenant that may use the bus itself.

A tenant's account holds nothing. It imports what is listed in `bus_users`, so its user can neither see nor name
anything else, JetStream included. When it asks a service, the server itself writes whose account asks into the
request, over whatever the caller wrote there.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from llorch_shared import subjects
from llorch_shared.bus.port import ASKED_BY_HEADER
from llorch_shared.identifiers import is_name

SERVICES: Final = "LLORCH"


class UnknownAccount(ValueError):
    """A request came from an account that is no tenant's."""


class _Info(msgspec.Struct, frozen=True):
    acc: str = ""


_INFO: Final = msgspec.json.Decoder(_Info)


def account_of(tenant: str) -> str:
    """Raises ValueError for a name that leaves no room for a lane of its own."""
    if not is_name(tenant) or subjects.bus_lane(tenant) == subjects.BUS_LANE:
        raise ValueError(f"{tenant!r} cannot be a tenant on the bus: use a-z, 0-9, '-' and '_', at most 59 characters")
    return subjects.ACCOUNT_OF_TENANT + tenant


def asking_tenant(headers: Mapping[str, str]) -> str | None:
    """Whose account a request came from; None for the services' own, where nobody is kept from writing the header, and
    who does only becomes less. Raises UnknownAccount."""
    if (info := headers.get(ASKED_BY_HEADER)) is None:
        return None
    try:
        account = _INFO.decode(info).acc
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UnknownAccount("the request does not say whose account it came from") from error
    tenant = account.removeprefix(subjects.ACCOUNT_OF_TENANT)
    if tenant == account or not is_name(tenant):
        raise UnknownAccount("the request came from an account of no tenant")
    return tenant
