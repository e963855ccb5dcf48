"""Bounds on the building of a network, whatever its configuration calls what it is made of.

Owns torch's global hooks while a network is built. Knows no configuration and no model. Invariant: a building that
passes has so many modules, and has taken so much time and memory, at most.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Final

import torch
from torch.nn.modules import module as hooks

from llmws.errors import ModelInvalidError

MAX_MODULES: Final = 2**14
"""Ten times what the largest models have, 126 layers of 13: experts are tensors, not modules. Some two seconds."""

MAX_CPU_S: Final = 10.0
"""Of the thread that builds. The largest models take 0.3; nobody else's tokens are computed meanwhile."""

MAX_MADE_BYTES: Final = 2**30
"""Of tensors that are made in memory although all should be on the meta device, as some classes do."""


@contextlib.contextmanager
def bounded_building(*, clock: Callable[[], float] = time.thread_time) -> Iterator[None]:
    """Ends a building on the meta device that goes beyond the bounds. One at a time.

    Args:
        clock: processor seconds of this thread.

    Raises:
        ModelInvalidError: inside, and it has not ended by then.
    """
    end_s = clock() + MAX_CPU_S
    modules = made_bytes = 0

    def count_module(_owner: torch.nn.Module, _name: str, _module: object) -> None:
        nonlocal modules
        modules += 1
        if modules > MAX_MODULES:
            raise ModelInvalidError(f"its network has more than {MAX_MODULES} modules")
        if clock() > end_s:
            raise ModelInvalidError(f"its network takes more than {MAX_CPU_S:g} s to build")

    def count_tensor(_owner: torch.nn.Module, _name: str, tensor: object) -> None:
        nonlocal made_bytes
        if isinstance(tensor, torch.Tensor) and not tensor.is_meta:
            made_bytes += tensor.nbytes
        if made_bytes > MAX_MADE_BYTES:
            raise ModelInvalidError(f"its network takes more than {MAX_MADE_BYTES} bytes beside its weights")

    with contextlib.ExitStack() as registered:
        registered.enter_context(hooks.register_module_module_registration_hook(count_module))
        registered.enter_context(hooks.register_module_parameter_registration_hook(count_tensor))
        registered.enter_context(hooks.register_module_buffer_registration_hook(count_tensor))
        yield
