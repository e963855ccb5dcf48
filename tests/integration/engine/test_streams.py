"""Streams of real models of every kind: equal to `generate()`, and the same however often they are cut."""

import pytest
import torch

from llmws.engine.fallback import PREFILL_TOKENS
from llmws.engine.text import Completion
from llmws.engine_api import GenerationRequest
from llmws.protocol.messages import Sampling
from tests.integration.engine import tiny_models

PROMPT = (5, 17, 90, 200, 31, 44)
LONG_PROMPT = tuple(3 + (37 * i) % 300 for i in range(PREFILL_TOKENS["cpu"] + 30))
GREEDY = Sampling(do_sample=False)
SEEDED = Sampling(do_sample=True, temperature=0.9, top_p=0.95, top_k=50, seed=11)
LENGTH = 24


def request(key="whole", **changes):
    fields = {"prompt_ids": PROMPT, "sampling": GREEDY, "max_new_tokens": LENGTH}
    return GenerationRequest(key=key, **(fields | changes))


def generated(name, prompt, **options):
    """What transformers itself makes of the prompt."""
    network = tiny_models.network(name)
    ids = network.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=LENGTH, **options)
    return tuple(ids[0, len(prompt) :].tolist())


@pytest.mark.parametrize("name", tiny_models.CONFIGS)
def test_greedy_equals_generate(name, ear, serve):
    serve(name)
    ear.engine.submit(request())
    (answer,) = ear.answer("whole")

    assert answer.ids == generated(name, PROMPT)
    assert len(set(answer.ids)) > 3, "a constant answer would prove little"
    assert answer.text == tiny_models.tokenizer().decode(list(answer.ids), skip_special_tokens=True)


@pytest.mark.parametrize("name", tiny_models.CONFIGS)
def test_a_prompt_in_chunks_equals_generate(name, ear, serve):
    """Longer than one chunk, and than every sliding window."""
    serve(name)
    ear.engine.submit(request(prompt_ids=LONG_PROMPT))
    (answer,) = ear.answer("whole")

    assert answer.ids == generated(name, LONG_PROMPT)


@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_a_penalty_equals_generate(name, ear, serve):
    serve(name)
    ear.engine.submit(request(sampling=Sampling(do_sample=False, repetition_penalty=1.3)))
    (answer,) = ear.answer("whole")

    assert answer.ids == generated(name, PROMPT, repetition_penalty=1.3)


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("name", tiny_models.BRIEF)
def test_a_cut_at_any_token_changes_nothing(name, sampling, ear, serve):
    """Every cut goes on from its ids and its sent text; ids, text and finish are those of the whole stream."""
    serve(name)
    ear.engine.submit(request(sampling=sampling))
    (whole,) = ear.answer("whole")
    decode = tiny_models.tokenizer().decode
    said = Completion(request(sampling=sampling), decode=lambda ids: decode(list(ids)), eos_ids={tiny_models.EOS})
    sent = [""]
    for token in whole.ids:
        said.push(token)
        sent.append(sent[-1] + said.take())

    for cut in range(len(whole.ids) + 1):
        rest = request(str(cut), sampling=sampling, emitted_ids=whole.ids[:cut], emitted_text=sent[cut])
        ear.engine.submit(rest)
    keys = [str(cut) for cut in range(len(whole.ids) + 1)]
    rests = ear.answer(*keys)

    assert sent[-1] == whole.text
    for cut, rest in enumerate(rests):
        assert (rest.index, rest.ids) == (cut, whole.ids[cut:])
        assert (sent[cut] + rest.text, rest.finish) == (whole.text, whole.finish)


def test_streams_side_by_side_do_not_change_one_another(ear, serve):
    serve("llama")
    alone = []
    for seed in range(6):
        ear.engine.submit(request(f"alone-{seed}", sampling=Sampling(do_sample=True, temperature=1.0, seed=seed)))
        alone += ear.answer(f"alone-{seed}")
    for seed in range(6):
        ear.engine.submit(request(f"beside-{seed}", sampling=Sampling(do_sample=True, temperature=1.0, seed=seed)))
    beside = ear.answer(*(f"beside-{seed}" for seed in range(6)))

    assert [(a.ids, a.text) for a in alone] == [(b.ids, b.text) for b in beside]
    assert len({answer.ids for answer in alone}) == 6


def test_a_stop_string_ends_the_text_and_stays_in_the_ids(ear, serve):
    serve("gpt2")
    ear.engine.submit(request())
    (whole,) = ear.answer("whole")
    stop = whole.text[3:5]
    ear.engine.submit(request("stopped", sampling=Sampling(do_sample=False, stop=[stop])))
    (stopped,) = ear.answer("stopped")

    assert stopped.text == whole.text[: whole.text.index(stop)]
    assert stopped.finish == "stop"
    assert stopped.ids == whole.ids[: len(stopped.ids)]


def test_log_probabilities_are_the_models_own(ear, serve):
    """Of the raw logits: here the likeliest token is forbidden, and is still listed first."""
    serve("qwen3")
    with torch.no_grad():
        logits = tiny_models.network("qwen3")(torch.tensor([PROMPT])).logits[0, -1]
    expected = torch.log_softmax(logits, dim=0)
    best = int(expected.argmax())
    sampling = Sampling(do_sample=False, logprobs=3, logit_bias={str(best): -100.0})
    ear.engine.submit(request(sampling=sampling, max_new_tokens=2))
    (answer,) = ear.answer("whole")

    first = answer.logprobs[0]
    assert len(answer.logprobs) == 2
    assert first.id == answer.ids[0] != best
    assert first.logprob == pytest.approx(float(expected[first.id]), abs=1e-4)
    assert [top.id for top in first.top] == torch.topk(expected, 3).indices.tolist()
