"""GPUs through NVML. Everything NVML can say no to is turned into a value: a problem of the node or a fault of a card.

Critical Xid events and double-bit ECC errors are collected by an event set without waiting; a fault, once seen, stays
until the node restarts, because the driver may go on answering as if nothing had happened.
"""

import contextlib
from collections.abc import Callable
from typing import Any, Final

import pynvml

from llorch_poold.gpu.probe import GpuReport
from llorch_shared.wire.registry import Gpu

_MIB: Final = 1024 * 1024
_EVENTS_MAX: Final = 64
_XID_APPLICATION: Final = frozenset({13, 31, 43, 45, 68, 137})
"""Xids that an application causes for itself; the card is fine."""


class Nvml:
    """The NVIDIA driver of this host."""

    def __init__(self) -> None:
        self._problem = ""
        self._events: Any = None
        self._faults: dict[str, str] = {}
        self._open = False

    def read(self) -> GpuReport:
        if not self._open and not self._start():
            return GpuReport(problem=self._problem)
        try:
            driver = _text(pynvml.nvmlSystemGetDriverVersion())
            count = int(pynvml.nvmlDeviceGetCount())
        except pynvml.NVMLError as error:
            return GpuReport(problem=f"the NVIDIA driver does not answer: {_say(error)}")
        self._collect_events()
        gpus = tuple(gpu for index in range(count) if (gpu := self._gpu(index)) is not None)
        if not gpus:
            return GpuReport(driver=driver, problem="the NVIDIA driver sees no GPU")
        usable = [gpu for gpu in gpus if not gpu.fault]
        problem = "" if usable else f"every GPU has a fault: {gpus[0].fault}"
        return GpuReport(gpus=gpus, driver=driver, problem=problem)

    def close(self) -> None:
        if self._open:
            self._open = False
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()

    def _start(self) -> bool:
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            self._problem = {
                pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "no NVIDIA driver is installed (libnvidia-ml.so.1 is missing)",
                pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "the NVIDIA driver is installed but not loaded",
            }.get(error.value, f"NVML does not start: {_say(error)}")
            return False
        self._open = True
        self._watch_events()
        return True

    def _watch_events(self) -> None:
        wanted = pynvml.nvmlEventTypeXidCriticalError | pynvml.nvmlEventTypeDoubleBitEccError
        try:
            self._events = pynvml.nvmlEventSetCreate()
            for index in range(int(pynvml.nvmlDeviceGetCount())):
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                with contextlib.suppress(pynvml.NVMLError):
                    pynvml.nvmlDeviceRegisterEvents(handle, wanted, self._events)
        except pynvml.NVMLError:
            self._events = None

    def _collect_events(self) -> None:
        if self._events is None:
            return
        for _ in range(_EVENTS_MAX):
            try:
                event = pynvml.nvmlEventSetWait_v2(self._events, 0)
                uuid = _text(pynvml.nvmlDeviceGetUUID(event.device))
            except pynvml.NVMLError:
                return
            if event.eventType == pynvml.nvmlEventTypeDoubleBitEccError:
                self._faults[uuid] = "double-bit ECC error"
            elif int(event.eventData) not in _XID_APPLICATION:
                self._faults[uuid] = f"Xid {int(event.eventData)}"

    def _gpu(self, index: int) -> Gpu | None:
        """One card; a card that fell off the bus is told with its fault as far as it is known."""
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            uuid = _text(pynvml.nvmlDeviceGetUUID(handle))
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            name = _text(pynvml.nvmlDeviceGetName(handle))
        except pynvml.NVMLError as error:
            fault = "lost" if error.value == pynvml.NVML_ERROR_GPU_IS_LOST else _say(error)
            return Gpu(index=index, uuid="", name="", vram_total_mb=0, vram_free_mb=0, fault=fault)
        rates = _optional(lambda: pynvml.nvmlDeviceGetUtilizationRates(handle))
        capability = _optional(lambda: pynvml.nvmlDeviceGetCudaComputeCapability(handle))
        return Gpu(
            index=index,
            uuid=uuid,
            name=name,
            vram_total_mb=int(memory.total) // _MIB,
            vram_free_mb=int(memory.free) // _MIB,
            utilization_percent=int(rates.gpu) if rates is not None else 0,
            compute_capability=f"{capability[0]}.{capability[1]}" if capability is not None else "",
            fault=self._faults.get(uuid, "") or _ecc_fault(handle),
        )


def _ecc_fault(handle: Any) -> str:
    errors = _optional(
        lambda: pynvml.nvmlDeviceGetTotalEccErrors(
            handle, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
        )
    )
    return f"{int(errors)} uncorrected ECC errors" if errors else ""


def _optional(question: Callable[[], Any]) -> Any:
    """None for what this card or driver does not support."""
    try:
        return question()
    except pynvml.NVMLError:
        return None


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _say(error: pynvml.NVMLError) -> str:
    return str(error)
