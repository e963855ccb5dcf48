"""What a context costs, for models whose numbers are public."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmws.engine import memory
from llmws.engine.layout import PagedFootprint, layout
from llmws.engine.memory import Footprint, Layer
from llmws.errors import ModelInvalidError, ModelOutOfMemoryError

LLAMA_3_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "vocab_size": 128256,
}
GEMMA_2_9B = {
    "model_type": "gemma2",
    "hidden_size": 3584,
    "num_hidden_layers": 42,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "sliding_window": 4096,
}
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
MAMBA_130M = {
    "model_type": "mamba",
    "hidden_size": 768,
    "intermediate_size": 1536,
    "state_size": 16,
    "conv_kernel": 4,
    "num_hidden_layers": 24,
}


def cost(config, context, dtype_bytes=2):
    return memory.cache_bytes(config, dtype_bytes=dtype_bytes, context=context)


def test_grouped_queries_keep_eight_of_thirty_two_heads():
    assert cost(LLAMA_3_8B, 1) == 128 * 1024


def test_half_of_gemma_2_stops_growing_at_its_window():
    a_layer_and_token = 2 * 8 * 256 * 2
    assert cost(GEMMA_2_9B, 8192) == a_layer_and_token * 21 * (8192 + 4096) + 21 * 8


def test_a_latent_is_kept_in_place_of_keys_and_values():
    """The naive formula gives 4,997,120."""
    assert cost(DEEPSEEK_V3, 1) == 61 * (512 + 64) * 2


def test_a_state_space_model_costs_the_same_at_any_length():
    state = 24 * (1536 * 4 * 2 + 1536 * 16 * 4)
    assert cost(MAMBA_130M, 1) == cost(MAMBA_130M, 1_000_000) == state


def test_learned_positions_bound_the_context():
    gpt2 = {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "n_ctx": 1024, "vocab_size": 50257}
    assert memory.positions(gpt2) == 1024
    assert cost(gpt2, 1024, dtype_bytes=4) == 12 * 2 * 768 * 4 * 1024


@pytest.mark.parametrize(
    ("fields", "full_layers"),
    [
        ({"sliding_window": 4096}, 0),
        ({"sliding_window": 4096, "use_sliding_window": False}, 12),
        ({"sliding_window": 4096, "use_sliding_window": True, "max_window_layers": 9}, 9),
        ({"sliding_window": 4096, "sliding_window_pattern": 6}, 2),
        ({"sliding_window": 4096, "model_type": "gemma3_text"}, 2),
        ({"sliding_window": None}, 12),
        ({"layer_types": ["full_attention"] * 3 + ["sliding_attention"] * 9, "sliding_window": 64}, 3),
        ({"text_config": LLAMA_3_8B | {"num_hidden_layers": 12}}, 12),
    ],
)
def test_which_layers_slide(fields, full_layers):
    config = LLAMA_3_8B | {"num_hidden_layers": 12} | fields
    layers = memory.cache_layers(config)
    assert [layer.window for layer in layers].count(None) == full_layers


def test_layers_that_share_keep_nothing():
    layers = memory.cache_layers(LLAMA_3_8B | {"num_kv_shared_layers": 20})
    assert [layer.token_values for layer in layers] == [2 * 8 * 128] * 12 + [0] * 20


def test_one_head_for_all_queries():
    assert cost({"n_embd": 64, "n_head": 8, "n_layer": 1, "multi_query": True}, 1, dtype_bytes=1) == 2 * 8


def test_a_configuration_that_does_not_say_is_refused():
    with pytest.raises(ModelInvalidError, match="num_hidden_layers"):
        cost({"model_type": "strange"}, 1)
    with pytest.raises(ModelInvalidError, match="holographic"):
        cost(LLAMA_3_8B | {"layer_types": ["holographic"] * 32}, 1)


@pytest.mark.parametrize("fields", [{"num_key_value_heads": -1}, {"num_key_value_heads": 0}])
def test_numbers_below_one_are_not_set(fields):
    assert cost(LLAMA_3_8B | fields, 1) == 4 * 128 * 1024


def test_a_model_shares_no_more_layers_than_it_has():
    layers = memory.cache_layers(LLAMA_3_8B | {"num_kv_shared_layers": 40})
    assert [layer.token_values for layer in layers] == [0] * 32


def test_scores_that_are_written_out_are_paid_for():
    """Also where the whole prompt goes through at once, and where nothing is cached."""
    scores_bytes = 32 * 8192**2 * 4
    for layers in (None, ()):
        written = memory.footprint(
            LLAMA_3_8B, dtype_bytes=4, chunk=memory.UNBOUNDED_CONTEXT, eager=True, layers=layers
        ).workspace_bytes(8192)
        fused = memory.footprint(
            LLAMA_3_8B, dtype_bytes=4, chunk=memory.UNBOUNDED_CONTEXT, layers=layers
        ).workspace_bytes(8192)
        assert written - fused >= 2 * scores_bytes
        assert fused >= 8192**2 * 5


# --- plans -----------------------------------------------------------------------------------------------------------

FOOTPRINT = memory.footprint(LLAMA_3_8B, dtype_bytes=2, chunk=512)


def test_the_longest_context_that_fits_is_promised():
    context = memory.longest_context(FOOTPRINT, budget_bytes=5 * 10**9, positions=131072)

    assert FOOTPRINT.need_bytes(context) <= 5 * 10**9 < FOOTPRINT.need_bytes(context + 1)


@pytest.mark.parametrize(("positions", "limit", "expected"), [(8192, 0, 8192), (8192, 4096, 4096), (8192, 9000, 8192)])
def test_model_and_operator_bound_the_context(positions, limit, expected):
    context = memory.longest_context(FOOTPRINT, budget_bytes=10**12, positions=positions, limit=limit)
    assert context == expected


def test_a_model_that_leaves_no_room_is_refused():
    with pytest.raises(ModelOutOfMemoryError, match="a context of 256 tokens needs"):
        memory.longest_context(FOOTPRINT, budget_bytes=30_000_000, positions=8192)


def test_a_model_that_knows_few_positions_needs_no_more():
    tiny = Footprint(
        layers=(Layer(token_values=1),),
        dtype_bytes=1,
        chunk=8,
        repeated_values=0,
        pair_bytes=1,
        token_values=0,
        logits_bytes=0,
    )
    assert memory.longest_context(tiny, budget_bytes=10**6, positions=16) == 16


# --- pages -----------------------------------------------------------------------------------------------------------

PAGED = PagedFootprint(layout(LLAMA_3_8B), memory.footprint(LLAMA_3_8B, dtype_bytes=2, chunk=512, layers=()), rows=32)


def test_a_pool_of_one_stream_has_its_pages_and_the_null_page():
    page = 16 * 128 * 1024
    assert PAGED.cache_bytes(8192) == (8192 // 16 + 1) * page
    assert PAGED.cache_bytes(8193) == (8192 // 16 + 2) * page


def test_every_stream_that_samples_pays_for_its_logits():
    more = msgspec.structs.replace(PAGED, rows=33)
    assert more.workspace_bytes(8192) - PAGED.workspace_bytes(8192) == 24 * 128256


@given(st.sampled_from([LLAMA_3_8B, GEMMA_2_9B | {"vocab_size": 256000}]), st.integers(1, 200_000))
def test_a_longer_context_never_needs_less(config, context):
    """Else the longest one could not be found by halving."""
    paged = PagedFootprint(layout(config), memory.footprint(config, dtype_bytes=2, chunk=512, layers=()), rows=8)
    assert paged.need_bytes(context) <= paged.need_bytes(context + 1)


# --- the device ------------------------------------------------------------------------------------------------------


def test_the_budget_is_the_smaller_of_share_and_free():
    gb = 10**9
    shared = memory.budget(total_bytes=80 * gb, free_bytes=79 * gb, utilization=0.5)
    taken = memory.budget(total_bytes=80 * gb, free_bytes=20 * gb, utilization=0.9)

    assert shared == 40 * gb
    assert taken == 20 * gb - 80 * gb // 50 - 64 * 2**20
