"""The model that comes with llmws, through the engine that serves it."""

from pathlib import Path

import msgspec
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmws.engine_api import Chunk, GenerationRequest, ModelLoaded, ModelRef
from llmws.protocol.messages import Sampling
from tests.support.listening import whole

FOLDER = Path(__file__).parents[3] / "models" / "llmws-guide"
GREEDY = Sampling(do_sample=False)
SEEDED = Sampling(do_sample=True, temperature=0.7, top_p=0.95, top_k=50, seed=2025)


@pytest.fixture(scope="module")
def guide(ear):
    model = ModelRef(
        name="llmws-guide", path="models/llmws-guide", location=str(FOLDER), size_bytes=2_400_000, source="models"
    )
    loaded = ear.load(model)
    assert isinstance(loaded, ModelLoaded), loaded
    yield ear
    ear.heard = ear.models()[-1:]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def prompt(tokenizer):
    turns = [{"role": "user", "content": "What is llmws?"}]
    return tuple(tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False))


def request(key, prompt, **changes):
    return GenerationRequest(key=key, prompt_ids=prompt, **({"sampling": GREEDY, "max_new_tokens": 96} | changes))


def test_it_answers_a_question_about_llmws(guide, prompt, tokenizer):
    """Token for token what `generate()` says, in words, and it knows where to stop."""
    guide.engine.submit(request("what", prompt))
    (answer,) = guide.answer("what")
    network = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    expected = network.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=96)[0, len(prompt) :]

    assert answer.ids == tuple(expected.tolist())
    assert answer.text == tokenizer.decode(expected, skip_special_tokens=True)
    assert answer.finish == "stop"
    assert "server" in answer.text


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_its_answer_is_the_same_however_often_it_is_killed(sampling, guide, prompt):
    """A cut after every chunk that was heard."""
    guide.engine.submit(request(f"whole-{sampling.seed}", prompt, sampling=sampling))
    (answer,) = guide.answer(f"whole-{sampling.seed}")
    said = Chunk(key="", index=0)
    while said.finish is None:
        key = f"{sampling.seed}-{len(said.ids)}"
        guide.engine.submit(request(key, prompt, sampling=sampling, emitted_ids=said.ids, emitted_text=said.text))
        guide.until(lambda key=key: bool(guide.chunks(key)))
        guide.engine.cancel(key)
        said = whole([said, msgspec.structs.replace(guide.chunks(key)[0], key="")])

    assert (said.ids, said.text, said.finish) == (answer.ids, answer.text, answer.finish)
