"""Whose text the slots of one engine hold: its KV cache keeps a session's last prompt and answer until another prompt
takes their place, or they are erased. Pure; for the life of one engine process.

A task that was handed to the engine may have left a part of its prompt beside what was there. With its first token its
whole prompt has been read, and nothing of others is left in the slot.
"""

from collections.abc import Container
from dataclasses import dataclass
from typing import Final, NamedTuple

HELD_MAX: Final = 8
"""Sessions that may have left something in one slot. With more it is erased as soon as it is idle."""


class Session(NamedTuple):
    tenant: str
    session_id: str
    """In lower case: an id is the same in either."""


@dataclass(slots=True)
class Text:
    """What a session has in a slot."""

    since_ms: int
    """When a task of it came into the slot first, Unix milliseconds."""
    used_ms: int
    """When one was in it last."""
    over: bool = False
    """Its session has ended: it must go, also if another task of the same id comes first."""


class Use(NamedTuple):
    """Of a session's text, over all slots of an engine; Unix milliseconds."""

    since_ms: int
    used_ms: int


class SlotMemory:
    def __init__(self, slots: int) -> None:
        self._slots: Final[dict[int, dict[Session, Text]]] = {slot: {} for slot in range(slots)}
        """Of another number is a slot of an earlier life."""
        self._used_ms: Final = dict.fromkeys(range(slots), 0)
        """When a task was in it last; 0 when nothing is."""
        self._due: Final[set[int]] = set()
        """Slots with text that must go."""

    def pick(self, session: Session, taken: Container[int]) -> int:
        """Of the slots that are not taken: one that has its text, else one that holds none, else the one whose text is
        oldest. Raises ValueError when all are taken. Asked for each task, of engines of many slots, too."""
        free = [slot for slot in self._slots if slot not in taken]
        own = [slot for slot in free if session in self._slots[slot]]
        return min(own or free, key=self._used_ms.__getitem__)

    def entered(self, slot: int, session: Session, now_ms: int) -> None:
        """A task of it is handed to the engine."""
        texts = self._slots.get(slot)
        if texts is None:
            return
        if session not in texts and len(texts) >= HELD_MAX:
            for text in texts.values():
                text.over = True
            texts.pop(min(texts, key=lambda each: texts[each].used_ms))
            self._due.add(slot)
        texts.setdefault(session, Text(now_ms, now_ms)).used_ms = now_ms
        self._used_ms[slot] = now_ms

    def left(self, slot: int, session: Session, now_ms: int, *, generated: bool) -> None:
        """The task is out of the slot. `generated`: it had a token."""
        text = self._slots.get(slot, {}).get(session)
        if text is None:
            return
        text.used_ms = self._used_ms[slot] = now_ms
        if generated:
            self._slots[slot] = {session: text}
            if not text.over:
                self._due.discard(slot)

    def end(self, session_id: str, tenant: str = "") -> None:
        """The session has ended. Empty tenant: whoever's it is."""
        for slot, texts in self._slots.items():
            for session, text in texts.items():
                if session.session_id == session_id and tenant in ("", session.tenant):
                    text.over = True
                    self._due.add(slot)

    def is_due(self, slot: int) -> bool:
        """Whether it holds text that must go."""
        return slot in self._due

    def due(self) -> list[int]:
        return sorted(self._due)

    def erased(self, slot: int) -> None:
        self._slots[slot] = {}
        self._used_ms[slot] = 0
        self._due.discard(slot)

    def sessions(self) -> dict[Session, Use]:
        """Those that have text here and have not ended."""
        found: dict[Session, Use] = {}
        for texts in self._slots.values():
            for session, text in texts.items():
                if not text.over:
                    other = found.get(session, Use(text.since_ms, text.used_ms))
                    found[session] = Use(min(text.since_ms, other.since_ms), max(text.used_ms, other.used_ms))
        return found
