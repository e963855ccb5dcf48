"""The compute device's memory: NVML where there is an NVIDIA driver, else the host.

Knows neither models nor torch, whose numbers only cover its own process. Invariant: never raises; a reading that the
driver does not give is left out.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import pynvml

from llmws.engine.host import cpu_name, host_memory
from llmws.engine_api import ModelInfo
from llmws.protocol.messages import (
    CudaResources,
    DeviceSummary,
    EngineResources,
    HostResources,
    ModelEntry,
    ModelSummary,
    Resources,
)

_GB = 1e9


class DeviceProbe:
    """A `MemoryProbe` of this machine.

    Args:
        device: as in the configuration; `cpu` shows the host even where there is a GPU.
        environ: `CUDA_VISIBLE_DEVICES` names the GPU.
    """

    def __init__(self, device: str = "auto", *, environ: Mapping[str, str] = os.environ) -> None:
        self._handle = None if device == "cpu" else _gpu(device, environ.get("CUDA_VISIBLE_DEVICES"))
        self._cpu_name = cpu_name()

    def summary(self) -> DeviceSummary:
        """See `MemoryProbe.summary`."""
        if (cuda := self._cuda()) is not None:
            return DeviceSummary(device=cuda.device, total_gb=cuda.total_gb, free_gb=cuda.free_gb)
        total, available = host_memory()
        return DeviceSummary(device=self._cpu_name, total_gb=_gb(total), free_gb=_gb(available))

    def resources(self, loaded: ModelInfo | None, models: Sequence[ModelEntry], load: EngineResources) -> Resources:
        """See `MemoryProbe.resources`."""
        return Resources(
            cuda=self._cuda(),
            model=ModelSummary(
                name=loaded.ref.name if loaded else None,
                path=loaded.ref.path if loaded else None,
                vision=loaded.vision if loaded else False,
            ),
            available_models=list(models),
            engine=load,
            host=HostResources(cpu=os.cpu_count() or 1, ram_gb=_gb(host_memory()[0])),
        )

    def _cuda(self) -> CudaResources | None:
        if self._handle is None:
            return None
        try:
            memory = pynvml.nvmlDeviceGetMemoryInfo(self._handle)
            name = pynvml.nvmlDeviceGetName(self._handle)
            major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(self._handle)
        except pynvml.NVMLError:
            return None
        try:
            utilization = float(pynvml.nvmlDeviceGetUtilizationRates(self._handle).gpu)
        except pynvml.NVMLError:
            utilization = None
        return CudaResources(
            device=name,
            total_gb=_gb(memory.total),
            free_gb=_gb(memory.free),
            total_bytes=memory.total,
            free_bytes=memory.free,
            utilization=utilization,
            compute_capability=f"{major}.{minor}",
        )


def _gpu(device: str, visible: str | None) -> Any:  # noqa: ANN401 - an opaque ctypes pointer
    """The NVML handle of the GPU that torch would call by that name, None if there is none."""
    index = int(device.partition(":")[2] or 0)
    try:
        pynvml.nvmlInit()
        if visible is None:
            return pynvml.nvmlDeviceGetHandleByIndex(index)
        name = [part.strip() for part in visible.split(",")][index]
        if name.isdecimal():
            return pynvml.nvmlDeviceGetHandleByIndex(int(name))
        return pynvml.nvmlDeviceGetHandleByUUID(name)
    except (pynvml.NVMLError, IndexError):
        return None


def _gb(size_bytes: int) -> float:
    return round(size_bytes / _GB, 1)
