"""Which build of the core this is: compiled by `hatch_build.py`, or the sources. Both make the same decisions."""

from llorch_scheduler.core import scheduler


def core_is_compiled() -> bool:
    return not str(scheduler.__file__).endswith(".py")
