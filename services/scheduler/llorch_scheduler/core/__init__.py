"""Decisions of the scheduler: events and time in, effects out. Nothing here touches the bus, a clock or a log."""
