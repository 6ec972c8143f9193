"""Appointments of tenants that are at their own bound (`queue.tenant_capacity`) while the queue has room.

A book is opened when the server first refuses a tenant for its bound, and closed when nothing is outstanding in it. At
most BOOKS_MAX of one pool are open: tenants beyond them are told their pace, and nothing is promised.
"""

from collections.abc import Iterator
from typing import Final

from llorch_scheduler.core.appointments import Appointments
from llorch_shared.wire.policy import WaitingSpec
from llorch_shared.wire.task import Priority

BOOKS_MAX: Final = 256

FlowKey = tuple[str, Priority]
"""Tenant and class."""


class TenantBooks:
    """Of one pool."""

    __slots__ = ("_books",)

    def __init__(self) -> None:
        self._books: Final[dict[FlowKey, Appointments]] = {}

    def get(self, flow: FlowKey) -> Appointments | None:
        return self._books.get(flow)

    def open(self, flow: FlowKey) -> Appointments | None:
        """The tenant's book; None when it has none and there are too many."""
        book = self._books.get(flow)
        if book is None and len(self._books) < BOOKS_MAX:
            book = self._books[flow] = Appointments()
        return book

    def arrived(self, flow: FlowKey, client: str) -> None:
        """Its task is in the queue."""
        book = self._books.get(flow) if self._books else None
        if book is not None:
            book.arrived(client)

    def promised(self, priority: Priority) -> Iterator[str]:
        """Tenants of this class to whose clients places are promised."""
        return (tenant for (tenant, each), book in self._books.items() if each is priority and book.outstanding)

    def step(self, at_ms: int, spec: WaitingSpec) -> list[FlowKey]:
        """Time passes. Returns the flows whose books are closed. O(books)."""
        for book in self._books.values():
            book.step(at_ms, spec)
        closed = [flow for flow, book in self._books.items() if not book.outstanding]
        for flow in closed:
            del self._books[flow]
        return closed
