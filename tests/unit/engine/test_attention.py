"""One stream's attention: whichever way it is computed, it is the same."""

import pytest
import torch

from llmws.engine import attention
from llmws.engine.attention import Scores

SHAPES = [(5, 5), (5, 40), (40, 40), (7, 23), (1, 9)]
"""Queries and keys: a prompt's first part, a later one, just within the window, about it, and a decode."""


def stream(queries, keys, *, heads=4, kv_heads=2):
    torch.manual_seed(3)
    return torch.randn(queries, heads, 16), torch.randn(keys, kv_heads, 16), torch.randn(keys, kv_heads, 16)


@pytest.mark.parametrize("window", [None, 40, 24, 8])
@pytest.mark.parametrize(("queries", "keys"), SHAPES)
def test_without_a_mask_it_is_what_it_is_with_one(queries, keys, window):
    """A query sees no more keys than a window has, so a decode gets no more."""
    tensors = stream(queries, keys if queries > 1 or window is None else min(keys, window))

    masked = Scores(None, window, None, None).attend(*tensors)
    torch.testing.assert_close(Scores(None, window, None, None, avoids_masks=True).attend(*tensors), masked)


@pytest.mark.parametrize(("window", "is_masked"), [(None, False), (40, False), (39, True)])
def test_only_a_window_that_hides_a_key_takes_a_mask(window, is_masked, monkeypatch):
    """With any other one flash attention is not used on CUDA, and every head of the keys is repeated."""
    masks = []
    attend = attention.scaled_dot_product_attention

    def watched(*tensors, attn_mask, **options):
        masks.append(type(attn_mask) is torch.Tensor)
        return attend(*tensors, attn_mask=attn_mask, **options)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", watched)
    Scores(None, window, None, None, avoids_masks=True).attend(*stream(5, 40))

    assert masks == [is_masked]


@pytest.mark.parametrize(("window", "has_sinks"), [(None, False), (9, False), (None, True)])
def test_scores_that_are_written_out_in_blocks_are_the_same(window, has_sinks, monkeypatch):
    """Here in blocks of three queries, the last one of one."""
    tensors = stream(7, 23)
    scores = Scores(None, window, 3.0, torch.randn(4) if has_sinks else None)
    whole = scores.attend(*tensors)
    monkeypatch.setitem(attention.WRITTEN_SCORES, "cpu", 3 * 4 * 23)

    torch.testing.assert_close(scores.attend(*tensors), whole)
