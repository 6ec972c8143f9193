"""Which engine on this machine can use its GPU without being installed by us."""

import shutil


def gpu_engine_command() -> tuple[str, ...]:
    """The llama-server on PATH; empty when there is none. The built-in engine's wheel computes on the CPU only."""
    found = shutil.which("llama-server")
    return (found,) if found else ()
