"""Sampling: the right distribution, and nothing but logits, parameters and position decide."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from llmws.engine.draw import ROWS, Parameters, draw, draw_from_all, gumbel, kept, leading, mix64, noise_state
from llmws.engine.sampler import BatchSampler
from llmws.errors import BadRequestError, ModelInvalidError
from llmws.protocol.messages import Sampling

CPU = torch.device("cpu")


class One:
    """A batch of one request."""

    def __init__(self, sampling, *, prompt=(), emitted=(), vocabulary=16):
        self.batch = BatchSampler(vocabulary, CPU)
        self.batch.add("one", sampling, prompt_ids=prompt, emitted_ids=emitted)

    def choose(self, logits):
        [outcome] = self.batch.choose(["one"], torch.as_tensor(logits)[None])
        return outcome


def drawn(sampling, logits, **context):
    return One(sampling, vocabulary=len(logits), **context).choose(logits).id


def free(**fields):
    return Sampling(**({"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "seed": 1} | fields))


def parameters(*, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seeds=(0,), positions=(0,)):
    """Of rows that differ in what the noise depends on."""
    rows = [(temperature, top_p, min_p)] * len(seeds)
    temperatures, top_ps, min_ps = torch.tensor(rows, dtype=torch.float64).T
    states = [noise_state(seed, position) for seed, position in zip(seeds, positions, strict=True)]
    return Parameters(temperatures, torch.tensor([top_k] * len(seeds)), top_ps, min_ps, torch.tensor(states))


def noise_of(ids, *, seed, position):
    return gumbel(torch.tensor([ids]), parameters(seeds=[seed], positions=[position]))[0].tolist()


# --- the noise -------------------------------------------------------------------------------------------------------


def test_the_hash_is_that_of_splitmix64():
    """Source: the reference implementation seeded with 1234567, first outputs."""
    gamma = 0x9E3779B97F4A7C15
    outputs = [mix64((1234567 + gamma * n) % 2**64) for n in (1, 2, 3)]

    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_the_noise_is_the_same_on_every_machine():
    """Fixed numbers: a change here breaks every stream that is continued, and needs another SAMPLER_VERSION."""
    noise = noise_of([0, 1, 50_000], seed=42, position=7)

    assert noise == pytest.approx([0.8114343651844833, -0.715471954673673, 0.5525165719969024], rel=1e-12)


@given(seed=st.integers(0, 2**53 - 1), position=st.integers(0, 2**20), token=st.integers(0, 2**31 - 1))
def test_the_noise_is_finite_and_of_its_token_alone(seed, position, token):
    alone = noise_of([token], seed=seed, position=position)
    among = noise_of([3, token, 9], seed=seed, position=position)

    assert math.isfinite(alone[0])
    assert alone[0] == among[1]


@pytest.mark.parametrize("temperature", [1e-308, 1e-12])
@pytest.mark.parametrize("best", [-2.0, 0.0, 9.0])
def test_a_tiny_temperature_is_greedy(temperature, best):
    logits = [best - 7, best, best - 3]
    filters = [free(temperature=temperature, top_p=p, seed=n) for p in (0.9, 1.0) for n in range(4)]
    assert {drawn(sampling, logits) for sampling in filters} == {1}


def test_log_probabilities_are_numbers_even_of_tokens_that_are_ruled_out():
    token = One(free(logprobs=3), vocabulary=3).choose(torch.tensor([2.0, -math.inf, 9.0]))

    assert [entry.logprob for entry in token.logprob.top][2] == -9999.0


# --- the distribution ------------------------------------------------------------------------------------------------


def chi_square(counts, probabilities):
    total = sum(counts)
    return sum((c - total * p) ** 2 / (total * p) for c, p in zip(counts, probabilities, strict=True) if p > 0)


@pytest.mark.parametrize("candidates", [None, 8], ids=["all", "leading"])
@pytest.mark.parametrize(
    ("varying", "temperature"), [("seed", 1.0), ("position", 1.0), ("seed", 0.5), ("position", 1.7)]
)
def test_draws_follow_the_softmax(varying, temperature, candidates):
    """Over seeds at one position, and over positions of one seed: 4,000 draws, 7 degrees of freedom."""
    logits = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -1.5])
    numbers, fives = list(range(4000)), [5] * 4000
    seeds, positions = (numbers, fives) if varying == "seed" else (fives, numbers)

    ids = draw(
        logits.expand(4000, -1),
        parameters(temperature=temperature, seeds=seeds, positions=positions),
        candidates=candidates,
    )

    # The 99.9th percentile of chi-square with 7 degrees of freedom.
    assert chi_square(ids.bincount().tolist(), torch.softmax(logits / temperature, dim=0).tolist()) < 24.32


def test_without_filters_no_order_is_needed():
    """With more rows than are drawn from at once. Kills: noise of a place in the order, not of an id."""
    rows = parameters(temperature=1.3, seeds=range(40), positions=range(40))
    logits = torch.randn(40, 99, generator=torch.Generator().manual_seed(3)).round()

    ids = draw_from_all(logits, rows).tolist()

    assert ids == draw(logits, rows).tolist()
    assert ids == draw(logits, rows, candidates=99).tolist()


@pytest.mark.parametrize("size", [1, 64])
def test_how_many_rows_are_drawn_from_at_once_does_not_matter(size, monkeypatch):
    """It is another number on a GPU."""
    rows = parameters(temperature=1.3, seeds=range(40), positions=range(40))
    logits = torch.randn(40, 99, generator=torch.Generator().manual_seed(3))
    expected = draw(logits, rows).tolist(), draw_from_all(logits, rows).tolist()
    monkeypatch.setitem(ROWS, "cpu", size)

    assert (draw(logits, rows).tolist(), draw_from_all(logits, rows).tolist()) == expected


@pytest.mark.parametrize(("seed_step", "position_step"), [(0, 1), (1, 0)])
def test_neighbouring_seeds_and_positions_are_independent(seed_step, position_step):
    """Pairs of draws at (seed, t) and (seed, t + 1), and at (seed, t) and (seed + 1, t): 15 degrees of freedom each."""
    seeds = [seed for seed in range(40) for _ in range(80)]
    positions = [position for _ in range(40) for position in range(80)]

    ones = gumbel(torch.arange(4)[None], parameters(seeds=seeds, positions=positions)).argmax(1)
    others = gumbel(
        torch.arange(4)[None],
        parameters(seeds=[s + seed_step for s in seeds], positions=[t + position_step for t in positions]),
    ).argmax(1)

    assert chi_square((4 * ones + others).bincount().tolist(), [1 / 16] * 16) < 37.70


# --- the filters -----------------------------------------------------------------------------------------------------

LOGITS = [0.1, 3.0, 2.9, 2.0, 1.0, -1.0, -2.0, 0.0]


def reachable(sampling, logits=LOGITS, draws=300):
    batch = BatchSampler(len(logits), CPU)
    keys = [str(seed) for seed in range(draws)]
    for key in keys:
        batch.add(key, replace(sampling, seed=int(key)), prompt_ids=(), emitted_ids=())
    return {token.id for token in batch.choose(keys, torch.tensor(logits).expand(draws, -1))}


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


@settings(max_examples=40)
@given(
    seed=st.integers(0, 1000),
    size=st.sampled_from([1, 2, 63, 64, 65, 640, 641, 703, 704, 1000]),
    count=st.sampled_from([0, 1, 2, 9, 10, 11, 300]),
)
def test_the_leading_are_the_best_and_lowest(seed, size, count):
    """With many equals, at every cut. Kills: whatever equals topk happens to return."""
    values = torch.randint(-3, 4, (2, size), generator=torch.Generator().manual_seed(seed)).float()
    values[values == -3] = -math.inf
    values[values == 0] *= torch.where(torch.arange(int((values == 0).sum())) % 2 == 0, -1.0, 1.0)  # -0.0 is 0.0
    rows = values.tolist()
    expected = [sorted(range(size), key=lambda i, row=row: (-row[i], i))[:count] for row in rows]

    found, ids = leading(values, count)

    assert ids.tolist() == expected
    assert found.tolist() == [[row[i] for i in order] for row, order in zip(rows, expected, strict=True)]


def test_something_is_always_left():
    assert kept(torch.tensor([[5.0, 1.0]]).double(), parameters(top_p=1e-9, min_p=1.0)).tolist() == [[True, False]]


# --- bias and penalties ----------------------------------------------------------------------------------------------

GREEDY = {"do_sample": False}


def test_bias_is_added_to_the_tokens_it_names():
    assert drawn(Sampling(**GREEDY, logit_bias={"5": 10.0}), LOGITS) == 5
    assert drawn(Sampling(**GREEDY, logit_bias={"1": -100.0}), LOGITS) == 2


def test_bias_on_a_token_that_is_not_there_is_refused():
    with pytest.raises(BadRequestError, match="token 16; the model has 16"):
        One(Sampling(logit_bias={"16": 1.0}))


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


def test_bias_comes_before_the_penalties_and_what_the_prompt_holds_is_penalised_once():
    """(1 + 3) / 2 and not 1 / 2 + 3, nor (1 + 3) / 2 / 2 once the token was chosen."""
    request = One(Sampling(**GREEDY, repetition_penalty=2.0, logit_bias={"0": 3.0}), prompt=[0], vocabulary=2)

    assert request.choose([1.0, 2.1]).id == 1
    assert request.choose([1.0, 3.9]).id == 0
    assert request.choose([1.0, 3.9]).id == 0


def test_the_logits_that_came_in_stay_as_they_are():
    logits = torch.tensor(LOGITS)
    penalised = Sampling(**GREEDY, repetition_penalty=1.5, presence_penalty=1.0, logit_bias={"1": 1.0})
    One(penalised, prompt=[1], emitted=[2]).choose(logits)

    assert logits.tolist() == torch.tensor(LOGITS).tolist()


# --- continuing ------------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(cut=st.integers(0, 20), seed=st.integers(0, 1000))
def test_a_sampler_that_starts_from_emitted_ids_goes_on_alike(cut, seed):
    """Penalties included: all state is a function of the ids.

    Kills: noise that does not depend on the position; counts that do not start from the emitted ids.
    """
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(20, 16, generator=generator)
    sampling = free(seed=seed, repetition_penalty=1.2, frequency_penalty=0.3, presence_penalty=0.1, top_p=0.9)

    whole = One(sampling, prompt=[3, 5])
    ids = [whole.choose(row).id for row in steps]
    rest = One(sampling, prompt=[3, 5], emitted=ids[:cut])

    assert [rest.choose(row).id for row in steps[cut:]] == ids[cut:]


# --- broken logits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [Sampling(do_sample=False), free()], ids=["greedy", "sampled"])
@pytest.mark.parametrize("bad", [[math.nan, 1.0], [1.0, math.nan], [-math.inf] * 2, [math.inf, 0.0]])
def test_unusable_logits_are_an_error(sampling, bad):
    request = One(sampling, vocabulary=2)

    assert str(request.choose(bad)) == "the model computed no usable logits"
    assert isinstance(request.choose(bad), ModelInvalidError)


def test_a_masked_token_is_no_error_and_never_drawn():
    assert reachable(free(temperature=2.0), [-math.inf, 0.0, -math.inf, 0.0]) == {1, 3}
