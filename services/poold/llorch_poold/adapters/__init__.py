"""Engines behind one small protocol; see `port.py`."""
