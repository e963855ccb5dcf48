"""What the fast tier refuses when it looks at a model, and that it leaves no trace of having looked."""

import copy
import weakref

import pytest
import torch
import transformers

from llmws.engine.linears import PackedLinear, held_bytes
from llmws.engine.measure import whole_config
from llmws.engine.runner import Token
from llmws.engine.selfcheck import adopt
from llmws.errors import ModelOutOfMemoryError
from tests.integration.engine import batches, tiny_models


def made(kind, **changes):
    """A model of that kind, its configuration changed."""
    config = copy.deepcopy(tiny_models.CONFIGS[kind])
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(7)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


LARGE = {"hidden_size": 512, "head_dim": 96}
"""Layers that are worth packing."""


def refusal(network):
    return adopt(network, whole_config(network.config))


def test_a_window_that_the_models_code_ignores_is_found_out():
    """However wide: far beyond what is tried out."""
    assert "layer 0 has window None, its configuration says 64" in refusal(made("llama", sliding_window=64))


def test_heads_that_the_configuration_lies_about_are_found_out():
    network = made("phi")
    network.config.num_key_value_heads = 1

    assert "cannot be run in packed batches" in refusal(network)


def test_a_model_of_few_positions_is_tried_out_within_them():
    network = made("gpt2", n_positions=16)

    assert refusal(network) is None


class Neighbourly(transformers.LlamaForCausalLM):
    """Scales what it says by the farthest position of the forward, as some rotary tables do."""

    def forward(self, position_ids=None, **inputs):
        outputs = super().forward(position_ids=position_ids, **inputs)
        if position_ids is not None and int(position_ids.max()) > 100:
            outputs.logits = outputs.logits.flip(-1)
        return outputs


def neighbourly():
    torch.manual_seed(7)
    config = copy.deepcopy(tiny_models.CONFIGS["llama"])
    for name, value in {**LARGE, "tie_word_embeddings": True}.items():
        setattr(config, name, value)
    return Neighbourly(config).eval()


def test_a_model_that_looks_at_the_longest_stream_is_found_out():
    assert "differ in packed batches" in refusal(neighbourly())


def test_a_model_that_is_refused_is_left_as_it_came():
    network = neighbourly()
    before = held_bytes(network)
    ids = torch.tensor([[5, 6, 7]])
    expected = network(input_ids=ids).logits
    refusal(network)

    assert not any(isinstance(module, PackedLinear) for module in network.modules())
    assert network.lm_head.weight is network.model.embed_tokens.weight
    assert held_bytes(network) == before
    assert torch.equal(network(input_ids=ids).logits, expected)


def test_a_model_that_is_taken_computes_what_it_did():
    """Large layers are packed, small ones gain nothing by it; nothing is held twice."""
    network = made("llama", **LARGE)
    before = held_bytes(network)
    assert refusal(network) is None

    packed = [name for name, module in network.named_modules() if isinstance(module, PackedLinear)]
    large = [f"model.layers.{layer}.self_attn.{name}_proj" for layer in (0, 1) for name in ("q", "o")]
    assert packed == [*large, "lm_head"]
    assert held_bytes(network) == before


@pytest.fixture
def runner(folder_of):
    loaded = batches.load(folder_of("llama"))
    batches.open_pool(loaded)
    yield loaded
    loaded.close()


def test_what_a_failed_step_held_is_gone_when_its_streams_are_tried_alone(runner):
    """Memory ran out; it must not stay in the hands of the error."""
    layer = runner._network.model.layers[1]
    whole, held, alive = layer.forward, [], []

    def forward(hidden, **inputs):
        alive.append(sum(tensor() is not None for tensor in held))
        hidden = hidden + 0
        held.append(weakref.ref(hidden))
        if len(held) <= 2:
            raise torch.OutOfMemoryError("simulated")
        return whole(hidden, **inputs)

    layer.forward = forward
    for key in "abc":
        runner.start(batches.request(key, range(3, 13), length=3))
    outcomes = runner.step(list("abc"))

    assert alive == [0, 0, 0, 0]
    assert [type(outcomes[key]) for key in "abc"] == [ModelOutOfMemoryError, Token, Token]


def test_a_start_that_fails_changes_nothing(runner):
    """Neither the stream of that key that is on, nor what is kept of streams."""
    asked = batches.request("a", range(3, 13), length=6)
    expected = batches.answer(runner, asked).ids["a"]
    runner.start(asked)
    found = [runner.step(["a"])["a"].id]
    with pytest.raises(ValueError, match="there is a stream a already"):
        runner.start(asked)
    while len(found) < 6:
        found.append(runner.step(["a"])["a"].id)
    runner.free("a")

    assert found == expected
    assert runner._sampler._requests == {}
