"""The devices that torch sees, and where weights go. Knows no models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import psutil
import torch

from llmws.config import OptimizationSection
from llmws.engine.host import host_memory
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


def missing_arch(capability: tuple[int, int], arch_list: Sequence[str]) -> str | None:
    """Why this build of torch has no code for a GPU, None if it has.

    Source: CUDA C++ Programming Guide, "Application compatibility": sm_XY runs on X.Z with Z >= Y; compute_XY, being
    PTX, on anything newer.

    Args:
        capability: of the GPU: (major, minor).
        arch_list: `torch.cuda.get_arch_list()`.
    """
    for arch in arch_list:
        kind, _, digits = arch.partition("_")
        number = "".join(filter(str.isdigit, digits))
        built = int(number[:-1] or 0), int(number[-1:] or 0)
        if kind == "sm" and built[0] == capability[0] and built[1] <= capability[1]:
            return None
        if kind == "compute" and built <= capability:
            return None
    major, minor = capability
    return (
        f"the GPU has compute capability {major}.{minor}, and this torch is built for {', '.join(arch_list)};"
        " install a build of torch for it, or set optimization.device to cpu"
    )


def no_flash_attention(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why torch's attention has no flash kernel there, None if it has.

    Source: FlashAttention-2, "NVIDIA CUDA Support": Ampere GPUs or newer, fp16 and bf16.
    """
    if device.type != "cuda":
        return "it is for GPUs"
    if dtype == torch.float32:
        return "it is for float16 and bfloat16"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "it is for GPUs of compute capability 8.0 or more"
    return None


def device_memory(device: torch.device) -> tuple[int, int]:
    """Total and free bytes of a device; what torch keeps in store for itself counts as free."""
    if device.type == "cpu":
        return host_memory()
    free, total = torch.cuda.mem_get_info(device)
    return total, free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def memory_for_models(device: torch.device, *, process_bytes: int) -> tuple[int, int]:
    """Total bytes of a device, and those that models may take: free ones, and what models of this process have now.

    Args:
        device: where.
        process_bytes: `anonymous_bytes` of the process before it had models; looked at on CPU only.
    """
    total, free = device_memory(device)
    if device.type == "cpu":
        return total, min(total, free + max(0, anonymous_bytes() - process_bytes))
    return total, free + torch.cuda.memory_allocated(device)


def anonymous_bytes() -> int:
    """Host memory of this process that no file backs. Weights that are mapped from their files count as free anyway."""
    memory = psutil.Process().memory_info()
    return int(memory.rss) - int(getattr(memory, "shared", 0))


def chosen(
    needed_bytes: int, *, free_bytes: Mapping[torch.device, int], budget_bytes: Mapping[torch.device, int]
) -> tuple[torch.device, ...]:
    """Where weights go: the first device that holds them now, else the first that does alone, else all together.

    Args:
        needed_bytes: of the weights.
        free_bytes: of each device, now.
        budget_bytes: of each device, if no other model were there.

    Raises:
        ModelOutOfMemoryError: they never fit.
    """
    for amounts in (free_bytes, budget_bytes):
        for device, amount in amounts.items():
            if needed_bytes <= min(amount, budget_bytes[device]):
                return (device,)
    if needed_bytes > (together := sum(budget_bytes.values())):
        message = f"the weights take {needed_bytes / 1e9:.1f} GB of memory; there are {max(together, 0) / 1e9:.1f} GB"
        raise ModelOutOfMemoryError(message)
    return tuple(budget_bytes)


def placement(budget_bytes: Mapping[torch.device, int]) -> dict[str, Any]:
    """Where weights go, as arguments of `from_pretrained`: on the one device, or spread over all by what they hold."""
    if len(budget_bytes) == 1:
        return {"device_map": {"": next(iter(budget_bytes))}}
    return {"device_map": "auto", "max_memory": {device.index: amount for device, amount in budget_bytes.items()}}
