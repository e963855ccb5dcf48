"""The batched sampler against its rules, written down one number at a time, and rows against their neighbours.

Mutants of the product that this kills are listed in docs/mutants.md.
"""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Sequence

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from llmws.engine.runner import Token
from llmws.engine.sampler import BatchSampler
from llmws.errors import LlmwsError
from llmws.protocol.messages import Sampling

CPU = torch.device("cpu")
MASK = 2**64 - 1

# --- the rules, plainly ----------------------------------------------------------------------------------------------


def plain_choice(
    logits: Sequence[float], sampling: Sampling, prompt_ids: Sequence[int], emitted_ids: Sequence[int], candidates: int
) -> int | None:
    """The next token of one request; None where the logits are of no use."""
    scores = plain_scores(logits, sampling, prompt_ids, emitted_ids)
    if any(math.isnan(score) for score in scores) or not math.isfinite(max(scores)):
        return None
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    if not sampling.do_sample or not sampling.temperature:
        return order[0]
    order = order[: candidates or None][: sampling.top_k or None]
    scaled = [(scores[i] - scores[order[0]]) / sampling.temperature for i in order]
    noisy = {}
    for i, score in list(zip(order, scaled, strict=True))[: plain_kept(scaled, sampling)]:
        noisy[i] = score + plain_noise(i, seed=sampling.seed or 0, position=len(emitted_ids))
    return min(noisy, key=lambda i: (-noisy[i], i))


def plain_scores(
    logits: Sequence[float], sampling: Sampling, prompt_ids: Sequence[int], emitted_ids: Sequence[int]
) -> list[float]:
    """After bias and penalties, in float32."""
    scores = list(logits)
    repetition = float32(sampling.repetition_penalty or 1.0)
    for token_id, bias in (sampling.logit_bias or {}).items():
        scores[int(token_id)] = float32(scores[int(token_id)] + float32(bias))
    for i in {*prompt_ids, *emitted_ids}:
        scores[i] = float32(scores[i] * repetition if scores[i] < 0 else scores[i] / repetition)
    for i in set(emitted_ids):
        frequency = float32(emitted_ids.count(i) * float32(sampling.frequency_penalty or 0.0))
        scores[i] = float32(scores[i] - float32(frequency + float32(sampling.presence_penalty or 0.0)))
    return scores


def plain_kept(scaled: Sequence[float], sampling: Sampling) -> int:
    """How many of the scores, best first, top-p and min-p leave."""
    top_p, min_p = sampling.top_p or 1.0, sampling.min_p or 0.0
    weights = [math.exp(score) for score in scaled]
    total, before, count = sum(weights), 0.0, 0
    for weight in weights:
        if (top_p < 1 and before >= top_p) or weight < min_p * weights[0]:
            break
        before += weight / total
        count += 1
    return count


def plain_noise(token_id: int, *, seed: int, position: int) -> float:
    """Gumbel noise out of SplitMix64, on unsigned integers."""
    gamma = 0x9E3779B97F4A7C15
    state = plain_mix64((plain_mix64(seed) + position * gamma) & MASK)
    bits = plain_mix64((state + (token_id + 1) * gamma) & MASK) >> 11
    return -math.log(-math.log((bits + 0.5) / 2**53))


def plain_mix64(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def float32(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]


# --- what comes in ---------------------------------------------------------------------------------------------------

# Thresholds that no sum of a few equal probabilities meets exactly: there, rounding may decide either way.
SAMPLINGS = st.builds(
    Sampling,
    do_sample=st.sampled_from([True, True, True, False]),
    temperature=st.sampled_from([0.0, 1e-300, 0.3, 1.0, 2.0]),
    top_k=st.sampled_from([0, 0, 1, 2, 9, 70, 300]),
    top_p=st.sampled_from([1.0, 1.0, 0.943, 0.617, 0.0131]),
    min_p=st.sampled_from([0.0, 0.0, 0.0123, 0.317, 1.0]),
    seed=st.integers(0, 2**53 - 1),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.7]),
    frequency_penalty=st.sampled_from([0.0, 0.4, -0.3]),
    presence_penalty=st.sampled_from([0.0, 0.9, -0.2]),
    logit_bias=st.sampled_from([None, {"1": 2.5}, {"0": -100.0, "1": 0.125}]),
    logprobs=st.sampled_from([None, None, 0, 3, 20]),
)
NUMBERS = st.integers(0, 2**32)
BROKEN = (math.nan, -math.nan, math.inf)


def rows_of(rng: random.Random, count: int, vocabulary: int, *, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Logits with equals, both zeros, ruled-out ids and now and then a row that is of no use."""
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    logits = (torch.randn(count, vocabulary, generator=generator) * 4).round() / rng.choice([1, 8])
    logits[logits == 0] = rng.choice([0.0, -0.0])
    logits[logits < -1] = rng.choice([-1.0, -math.inf])
    for row in logits:
        if rng.random() < 0.1:
            row[rng.randrange(vocabulary)] = rng.choice(BROKEN)
        if rng.random() < 0.05:
            row[:] = -math.inf
    return logits.to(dtype)


def ids_of(rng: random.Random, vocabulary: int) -> list[int]:
    return [rng.randrange(min(vocabulary, 12)) for _ in range(rng.randrange(12))]


def told(outcome: Token | LlmwsError) -> Token | str:
    return outcome if isinstance(outcome, Token) else str(outcome)


# --- the properties --------------------------------------------------------------------------------------------------


@given(
    samplings=st.lists(SAMPLINGS, min_size=1, max_size=6),
    vocabulary=st.sampled_from([2, 63, 64, 65, 300, 1100]),
    candidates=st.sampled_from([0, 1, 4, 256]),
    number=NUMBERS,
)
def test_every_row_gets_what_the_rules_say(samplings, vocabulary, candidates, number):
    """Over three steps, so that what was chosen counts in the next; all rules at once, in one batch."""
    rng = random.Random(number)
    batch = BatchSampler(vocabulary, CPU, candidates=candidates)
    prompts, completions = {}, {}
    for row, sampling in enumerate(samplings):
        key = str(row)
        prompts[key], completions[key] = ids_of(rng, vocabulary), ids_of(rng, vocabulary)
        batch.add(key, sampling, prompt_ids=prompts[key], emitted_ids=completions[key])
    for _ in range(3):
        logits = rows_of(rng, len(samplings), vocabulary)
        expected = [
            plain_choice(row, sampling, prompts[key], completions[key], candidates)
            for row, sampling, key in zip(logits.tolist(), samplings, prompts, strict=True)
        ]

        outcomes = batch.choose(list(prompts), logits)

        assert [token.id if isinstance(token, Token) else None for token in outcomes] == expected
        for key, token_id in zip(prompts, expected, strict=True):
            completions[key] += [] if token_id is None else [token_id]


@settings(max_examples=3)
@given(sampling=SAMPLINGS, number=NUMBERS)
def test_the_rules_hold_where_256_candidates_are_few(sampling, number):
    rng = random.Random(number)
    vocabulary = rng.choice([16_449, 20_032])
    sampled = replace(sampling, do_sample=True, temperature=1.7)
    logits = rows_of(rng, 2, vocabulary)
    batch = BatchSampler(vocabulary, CPU)
    batch.add("a", sampled, prompt_ids=(), emitted_ids=())
    batch.add("b", sampled, prompt_ids=(), emitted_ids=())

    outcomes = batch.choose(["a", "b"], logits)

    expected = [plain_choice(row, sampled, (), (), 256) for row in logits.tolist()]
    assert [token.id if isinstance(token, Token) else None for token in outcomes] == expected


@given(
    samplings=st.lists(SAMPLINGS, min_size=2, max_size=20),
    vocabulary=st.sampled_from([2, 65, 700]),
    candidates=st.sampled_from([0, 4, 256]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    number=NUMBERS,
)
def test_a_row_does_not_depend_on_its_neighbours(samplings, vocabulary, candidates, dtype, number):
    """To the last bit, log-probabilities included, whoever is in the batch and in whatever order."""
    rng = random.Random(number)
    together = BatchSampler(vocabulary, CPU, candidates=candidates)
    alone = {str(row): BatchSampler(vocabulary, CPU, candidates=candidates) for row in range(len(samplings))}
    for sampling, (key, single) in zip(samplings, alone.items(), strict=True):
        ids = {"prompt_ids": ids_of(rng, vocabulary), "emitted_ids": ids_of(rng, vocabulary)}
        together.add(key, sampling, **ids)
        single.add(key, sampling, **ids)
    for _ in range(2):
        keys = rng.sample(list(alone), rng.randint(1, len(alone)))
        logits = rows_of(rng, len(keys), vocabulary, dtype=dtype)

        outcomes = together.choose(keys, logits)

        singles = [alone[key].choose([key], row[None])[0] for key, row in zip(keys, logits, strict=True)]
        assert [told(outcome) for outcome in outcomes] == [told(single) for single in singles]


@given(count=st.integers(0, 20), vocabulary=st.sampled_from([2, 65, 1500]), number=NUMBERS)
def test_log_probabilities_are_those_of_the_model(count, vocabulary, number):
    """Of its own logits, whatever bias and filters make of them; the likeliest come first, equals by id."""
    rng = random.Random(number)
    logits = (torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(number)) * 16).round() / 8
    row = logits[0].tolist()
    sampling = Sampling(do_sample=True, temperature=0.5, top_k=5, seed=number, logit_bias={"1": 9.0}, logprobs=count)
    batch = BatchSampler(vocabulary, CPU)
    batch.add("", sampling, prompt_ids=ids_of(rng, vocabulary), emitted_ids=())

    [token] = batch.choose([""], logits)

    total = math.log(sum(math.exp(value) for value in row))
    order = sorted(range(vocabulary), key=lambda i: (-row[i], i))[:count]
    assert [entry.id for entry in token.logprob.top] == order
    assert token.logprob.id == token.id
    found = [token.logprob.logprob, *(entry.logprob for entry in token.logprob.top)]
    assert all(abs(own - (row[i] - total)) < 1e-4 for own, i in zip(found, [token.id, *order], strict=True))
