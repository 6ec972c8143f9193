"""Loaded by the interpreter of a service whose wall clock the nemesis may set (`clock.py`): this folder is on its
`PYTHONPATH`, and `CHAOS_CLOCK` names a file with the seconds to add.

Only what reads the wall clock is changed. Engines, which inherit the surroundings of their node, keep theirs: what they
generated, and when, is evidence.
"""

import mmap
import os
import struct
import sys
import time

SERVICES = ("llorch_gateway", "llorch_scheduler", "llorch_poold", "llorch_provisioner")


def _jump(path: str) -> None:
    with open(path, "rb") as file:
        added = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)
    seconds = struct.Struct("<d").unpack_from
    true_ns = time.time_ns

    def time_ns() -> int:
        return true_ns() + int(seconds(added)[0] * 1e9)

    time.time_ns = time_ns
    time.time = lambda: time_ns() / 1e9


if (file := os.environ.get("CHAOS_CLOCK")) and sys.orig_argv[1:2] == ["-m"] and sys.orig_argv[2] in SERVICES:
    _jump(file)
