"""Which GPUs this machine has, as its driver tells; having none is a value, not an error."""

import msgspec


class GpuSurvey(msgspec.Struct, frozen=True, kw_only=True):
    names: tuple[str, ...] = ()
    driver: str = ""
    problem: str = ""
    """Why there is none; empty when there is one."""


def survey() -> GpuSurvey:
    """Ask NVML. Never raises."""
    try:
        import pynvml
    except ImportError:
        return GpuSurvey(problem="the package nvidia-ml-py is not installed")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return GpuSurvey(problem=f"no NVIDIA driver answers ({error})")
    try:
        count = pynvml.nvmlDeviceGetCount()
        names = tuple(_text(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(i))) for i in range(count))
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        return GpuSurvey(names=names, driver=driver, problem="" if names else "the driver reports no GPU")
    except pynvml.NVMLError as error:
        return GpuSurvey(problem=f"the NVIDIA driver fails ({error})")
    finally:
        pynvml.nvmlShutdown()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
