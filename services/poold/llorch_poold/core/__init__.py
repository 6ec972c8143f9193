"""Decisions of the node agent: pure, time and chance passed in."""
