"""Linear layers on CPU whose weights lie as oneDNN's kernels read them.

A plain `torch.nn.Linear` lays its weight out anew on every call, which for the few rows of a decode step takes as long
as the product itself. Knows no model. Invariant: a layer computes what it did before, and no weight is held twice but
one that another module shares.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch

from llmws.engine.network import Network

_ROWS: Final = 16
"""Rows that the layout is chosen for. It serves four as well as a hundred; chosen for one, it would serve only that."""

_FEWEST_ROWS: Final = 4
"""Fewer are filled up: the kernel for one row reads a weight at 13 GB/s, the one for four at 16 to 19."""

SMALLEST_PACKED_BYTES: Final = 2**19
"""Of a weight that is worth it: a call of the packed product takes some 15 us longer than a plain one."""


class PackedLinear(torch.nn.Module):
    """In the place of a `torch.nn.Linear`. Source: what torch's inductor makes of one when it freezes a model."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.bias = linear.bias
        self.weight_bytes = linear.weight.nbytes
        # Opaque, and so neither a parameter nor a buffer: it can be neither saved nor moved.
        self._weight: Any = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """See `torch.nn.Linear`."""
        missing = _FEWEST_ROWS - rows.shape[-2] if rows.dim() > 1 else 0
        if missing <= 0 or rows.numel() > rows.shape[-2] * self.in_features:
            return self._product(rows)
        return self._product(torch.nn.functional.pad(rows, (0, 0, 0, missing)))[..., :-missing, :]

    def _product(self, rows: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._weight, self.bias, "none", [], "")
        return out

    def unpacked(self) -> torch.nn.Linear:
        """The layer as it was."""
        with torch.device("meta"):
            linear = torch.nn.Linear(self.in_features, self.out_features, bias=False)
        linear.weight = torch.nn.Parameter(self._weight.to_dense(), requires_grad=False)
        linear.bias = self.bias
        return linear


def can_pack(network: Network) -> bool:
    """Whether this torch has the kernels, and the model is one that they are for."""
    weights = [module.weight for module in network.modules() if _is_plain(module)]
    return (
        bool(weights)
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in weights)
    )


@torch.no_grad()
def pack(network: Network) -> None:
    """Replaces the linear layers that are large enough to gain by it."""
    _replace(network, _is_plain, PackedLinear)


@torch.no_grad()
def unpack(network: Network) -> None:
    """Undoes `pack`."""
    _replace(network, lambda module: type(module) is PackedLinear, PackedLinear.unpacked)


def held_bytes(network: Network) -> int:
    """Memory of a model's weights, packed or not. One that an embedding shares with a packed layer is there twice."""
    plain = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
    return plain + sum(module.weight_bytes for module in network.modules() if isinstance(module, PackedLinear))


def _is_plain(module: torch.nn.Module) -> bool:
    return type(module) is torch.nn.Linear and module.weight.nbytes >= SMALLEST_PACKED_BYTES


def _replace(network: Network, chosen: Callable[[torch.nn.Module], bool], make: Any) -> None:  # noqa: ANN401 - from one
    """One after the other, so that one weight at most is there twice."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if chosen(child):
                setattr(parent, name, make(child))
