"""Packed linear layers compute what plain ones do."""

import pytest
import torch

from llmws.engine.linears import PackedLinear


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("width", [64, 800], ids=["stays in the cache", "is read from memory"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (1, 4), (1, 37), (3,), (0,), (2, 3), (5, 1, 2)], ids=str)
def test_it_is_the_plain_layer(shape, width, bias):
    """For any number of rows, few of which are filled up."""
    torch.manual_seed(1)
    plain = torch.nn.Linear(width, 800, bias=bias)
    rows = torch.randn(*shape, width)
    with torch.inference_mode():
        expected, found = plain(rows), PackedLinear(plain)(rows)

    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-4)


def test_unpacked_it_is_the_plain_layer_again():
    plain = torch.nn.Linear(48, 80)
    packed = PackedLinear(plain)
    again = packed.unpacked()

    assert torch.equal(again.weight, plain.weight)
    assert torch.equal(again.bias, plain.bias)
