"""The devices that torch sees, and where weights go. Knows no models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from llmws.config import OptimizationSection
from llmws.engine.probe import host_memory, missing_arch
from llmws.errors import ModelInvalidError, ModelOutOfMemoryError


def target(optimization: OptimizationSection) -> tuple[list[torch.device], torch.dtype]:
    """The devices that a model may be placed on, and its dtype.

    `auto` and `cuda` mean every GPU, `cuda:1` that one.

    Raises:
        ModelInvalidError: the device is not there, or this build of torch has no code for it.
    """
    name = optimization.device
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        devices = [torch.device("cpu")]
    elif not torch.cuda.is_available():
        raise ModelInvalidError(f"optimization.device is {name}, but torch finds no CUDA device")
    elif ":" in name:
        devices = [torch.device(name)]
    else:
        devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    cuda = devices[0].type == "cuda"
    if cuda and (reason := missing_arch(torch.cuda.get_device_capability(devices[0]), torch.cuda.get_arch_list())):
        raise ModelInvalidError(reason)
    if optimization.dtype == "auto":
        return devices, torch.bfloat16 if cuda else torch.float32
    dtype: torch.dtype = getattr(torch, optimization.dtype)
    return devices, dtype


def device_memory(device: torch.device) -> tuple[int, int]:
    """Total and free bytes of a device; what torch keeps in store for itself counts as free."""
    if device.type == "cpu":
        return host_memory()
    free, total = torch.cuda.mem_get_info(device)
    return total, free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def placement(needed_bytes: int, free_bytes: Mapping[torch.device, int]) -> dict[str, Any]:
    """Where weights go, as arguments of `from_pretrained`: the first device they fit on, else spread over all.

    Raises:
        ModelOutOfMemoryError: they do not fit.
    """
    for device, free in free_bytes.items():
        if needed_bytes <= free:
            return {"device_map": {"": device}}
    together = sum(free_bytes.values())
    if needed_bytes > together:
        message = f"the weights take {needed_bytes / 1e9:.1f} GB of memory; {together / 1e9:.1f} GB are free"
        raise ModelOutOfMemoryError(message)
    return {"device_map": "auto", "max_memory": {device.index: free for device, free in free_bytes.items()}}
