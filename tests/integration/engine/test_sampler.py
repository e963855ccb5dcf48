"""Sampling: the right distribution, and nothing but logits, parameters and position decide."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmws.engine.sampler import CPU_CANDIDATES, Sampler, candidates, gumbel, keep, mix64
from llmws.errors import BadRequestError, ModelInvalidError
from llmws.protocol.messages import Sampling


def sampler(sampling, *, prompt=(), emitted=(), vocabulary=16):
    return Sampler(sampling, prompt_ids=prompt, emitted_ids=emitted, vocabulary=vocabulary)


def drawn(sampling, logits, **context):
    return sampler(sampling, vocabulary=len(logits), **context).choose(torch.as_tensor(logits)).id


def free(**fields):
    return Sampling(**({"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "seed": 1} | fields))


# --- the noise -------------------------------------------------------------------------------------------------------


def test_the_hash_is_that_of_splitmix64():
    """Source: the reference implementation seeded with 1234567, first outputs."""
    gamma = 0x9E3779B97F4A7C15
    outputs = [mix64((1234567 + gamma * n) % 2**64) for n in (1, 2, 3)]

    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_the_noise_is_the_same_on_every_machine():
    """Fixed numbers: a change here breaks every stream that is continued, and needs another SAMPLER_VERSION."""
    noise = gumbel(torch.tensor([0, 1, 50_000]), seed=42, position=7)

    expected = []
    state = mix64((mix64(42) + 7 * 0x9E3779B97F4A7C15) % 2**64)
    for token in (0, 1, 50_000):
        bits = mix64((state + (token + 1) * 0x9E3779B97F4A7C15) % 2**64) >> 11
        expected.append(-math.log(-math.log((bits + 0.5) / 2**53)))
    assert noise.tolist() == pytest.approx(expected, rel=1e-12)
    assert noise.tolist() == pytest.approx([0.8114343651844833, -0.715471954673673, 0.5525165719969024], rel=1e-12)


@given(seed=st.integers(0, 2**53 - 1), position=st.integers(0, 2**20), token=st.integers(0, 2**31 - 1))
def test_the_noise_is_finite_and_of_its_token_alone(seed, position, token):
    alone = gumbel(torch.tensor([token]), seed=seed, position=position)
    among = gumbel(torch.tensor([3, token, 9]), seed=seed, position=position)

    assert math.isfinite(float(alone))
    assert float(alone) == float(among[1])


@pytest.mark.parametrize("temperature", [1e-308, 1e-12])
@pytest.mark.parametrize("best", [-2.0, 0.0, 9.0])
def test_a_tiny_temperature_is_greedy(temperature, best):
    logits = [best - 7, best, best - 3]
    filters = [free(temperature=temperature, top_p=p, seed=n) for p in (0.9, 1.0) for n in range(4)]
    assert {drawn(sampling, logits) for sampling in filters} == {1}


def test_log_probabilities_are_numbers_even_of_tokens_that_are_ruled_out():
    token = sampler(free(logprobs=3), vocabulary=3).choose(torch.tensor([2.0, -math.inf, 9.0]))

    assert [entry.logprob for entry in token.logprob.top][2] == -9999.0


# --- the distribution ------------------------------------------------------------------------------------------------


def chi_square(counts, probabilities):
    total = sum(counts)
    return sum((c - total * p) ** 2 / (total * p) for c, p in zip(counts, probabilities, strict=True) if p > 0)


@pytest.mark.parametrize(
    ("varying", "temperature"), [("seed", 1.0), ("position", 1.0), ("seed", 0.5), ("position", 1.7)]
)
def test_draws_follow_the_softmax(varying, temperature):
    """Over seeds at one position, and over positions of one seed: 4,000 draws, 7 degrees of freedom."""
    logits = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -1.5])
    counts = [0] * 8
    at_each_position = sampler(free(temperature=temperature, seed=5), vocabulary=8)
    for i in range(4000):
        if varying == "position":
            counts[at_each_position.choose(logits).id] += 1
        else:
            counts[drawn(free(temperature=temperature, seed=i), logits)] += 1

    # The 99.9th percentile of chi-square with 7 degrees of freedom.
    assert chi_square(counts, torch.softmax(logits / temperature, dim=0).tolist()) < 24.32


def test_neighbouring_seeds_and_positions_are_independent():
    """Pairs of draws at (seed, t) and (seed, t + 1), and at (seed, t) and (seed + 1, t): 15 degrees of freedom each."""
    ids = torch.arange(4)

    def draw(seed, position):
        return int(gumbel(ids, seed=seed, position=position).argmax())

    for step in ((0, 1), (1, 0)):
        counts = [0] * 16
        for i in range(3200):
            seed, position = divmod(i, 80)
            counts[4 * draw(seed, position) + draw(seed + step[0], position + step[1])] += 1
        assert chi_square(counts, [1 / 16] * 16) < 37.70


# --- the filters -----------------------------------------------------------------------------------------------------

LOGITS = [0.1, 3.0, 2.9, 2.0, 1.0, -1.0, -2.0, 0.0]


def reachable(sampling, logits=LOGITS, draws=300):
    return {drawn(Sampling(**(fields_of(sampling) | {"seed": seed})), logits) for seed in range(draws)}


def fields_of(sampling):
    return {name: getattr(sampling, name) for name in sampling.__struct_fields__}


def test_top_k_leaves_the_k_best():
    assert reachable(free(top_k=2, temperature=2.0)) == {1, 2}


def test_top_p_leaves_the_smallest_set_that_reaches_it():
    probabilities = torch.softmax(torch.tensor(LOGITS), dim=0)
    top_two = float(probabilities[1] + probabilities[2])

    assert reachable(free(top_p=top_two - 0.01)) == {1, 2}
    assert reachable(free(top_p=top_two + 0.01)) == {1, 2, 3}
    assert reachable(free(top_p=0.0001)) == {1}


def test_min_p_is_a_share_of_the_best():
    ratio = math.exp(2.0 - 3.0)

    assert reachable(free(min_p=ratio + 0.01)) == {1, 2}
    assert reachable(free(min_p=ratio - 0.01)) == {1, 2, 3}


@pytest.mark.parametrize("sampling", [Sampling(do_sample=False, temperature=1.0), free(temperature=0.0)])
def test_without_sampling_or_temperature_the_best_wins(sampling):
    assert drawn(sampling, LOGITS) == 1


def test_ties_go_to_the_lower_id():
    assert drawn(Sampling(do_sample=False), [0.0, 5.0, 5.0, 5.0]) == 1
    assert candidates(torch.tensor([1.0, 7.0, 7.0, 3.0, 7.0]), 2)[1].tolist() == [1, 2]


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), size=st.integers(2, CPU_CANDIDATES + 60), top_k=st.integers(0, 400))
def test_candidates_are_the_best_and_lowest(seed, size, top_k):
    """With many equals, at every cut. Kills: whatever equals topk happens to return."""
    values = torch.randint(-3, 4, (size,), generator=torch.Generator().manual_seed(seed)).tolist()
    logits = torch.tensor(values, dtype=torch.float32)
    expected = sorted(range(len(values)), key=lambda i: (-values[i], i))[: min(top_k or len(values), CPU_CANDIDATES)]

    kept, ids = candidates(logits, top_k)

    assert ids.tolist() == expected
    assert kept.tolist() == [values[i] for i in expected]


def test_something_is_always_left():
    assert keep(torch.tensor([5.0, 1.0]).double(), top_p=1e-9, min_p=1.0) == 1


# --- bias and penalties ----------------------------------------------------------------------------------------------

GREEDY = {"do_sample": False}


def test_bias_is_added_to_the_tokens_it_names():
    assert drawn(Sampling(**GREEDY, logit_bias={"5": 10.0}), LOGITS) == 5
    assert drawn(Sampling(**GREEDY, logit_bias={"1": -100.0}), LOGITS) == 2


def test_bias_on_a_token_that_is_not_there_is_refused():
    with pytest.raises(BadRequestError, match="token 16; the model has 16"):
        sampler(Sampling(logit_bias={"16": 1.0}))


def test_repetition_counts_prompt_and_completion_and_shrinks_both_signs():
    """A seen logit is divided when positive, multiplied when negative."""
    penalised = Sampling(**GREEDY, repetition_penalty=1.1)

    assert drawn(penalised, [3.0, 2.9], prompt=[0]) == 1
    assert drawn(penalised, [3.0, 2.9], emitted=[0]) == 1
    assert drawn(penalised, [-3.0, -3.2], prompt=[0]) == 1


def test_frequency_and_presence_count_the_completion_only():
    assert drawn(Sampling(**GREEDY, presence_penalty=0.2), [3.0, 2.9], prompt=[0]) == 0
    assert drawn(Sampling(**GREEDY, presence_penalty=0.2), [3.0, 2.9], emitted=[0]) == 1
    assert drawn(Sampling(**GREEDY, frequency_penalty=0.04), [3.0, 2.9], emitted=[0] * 2) == 0
    assert drawn(Sampling(**GREEDY, frequency_penalty=0.04), [3.0, 2.9], emitted=[0] * 3) == 1


def test_the_logits_that_came_in_stay_as_they_are():
    logits = torch.tensor(LOGITS)
    penalised = Sampling(**GREEDY, repetition_penalty=1.5, presence_penalty=1.0, logit_bias={"1": 1.0})
    sampler(penalised, prompt=[1], emitted=[2]).choose(logits)

    assert logits.tolist() == torch.tensor(LOGITS).tolist()


# --- continuing ------------------------------------------------------------------------------------------------------


@given(cut=st.integers(0, 20), seed=st.integers(0, 1000))
def test_a_sampler_that_starts_from_emitted_ids_goes_on_alike(cut, seed):
    """Penalties included: all state is a function of the ids.

    Kills: noise that does not depend on the position; counts that do not start from the emitted ids.
    """
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(20, 16, generator=generator)
    sampling = free(seed=seed, repetition_penalty=1.2, frequency_penalty=0.3, presence_penalty=0.1, top_p=0.9)

    whole = sampler(sampling, prompt=[3, 5])
    ids = [whole.choose(row).id for row in steps]
    rest = sampler(sampling, prompt=[3, 5], emitted=ids[:cut])

    assert [rest.choose(row).id for row in steps[cut:]] == ids[cut:]


# --- broken logits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [Sampling(do_sample=False), free()], ids=["greedy", "sampled"])
@pytest.mark.parametrize("bad", [[math.nan, 1.0], [1.0, math.nan], [-math.inf] * 2, [math.inf, 0.0]])
def test_unusable_logits_are_an_error(sampling, bad):
    with pytest.raises(ModelInvalidError, match="no usable logits"):
        drawn(sampling, bad)


def test_a_masked_token_is_no_error_and_never_drawn():
    assert reachable(free(temperature=2.0), [-math.inf, 0.0, -math.inf, 0.0]) == {1, 3}
