"""Several real models in little memory: who is there, what goes on meanwhile, and that memory comes back."""

import json
import shutil
import subprocess
import sys

import msgspec
import pytest
import torch

from llmws.config import LimitsSection, OptimizationSection
from llmws.engine.loading import TransformersLoader
from llmws.engine.residency import Claim
from llmws.engine.worker import Worker
from llmws.engine_api import Chunk, GenerationRequest, ModelLoaded, ModelProgress, ModelUnloaded
from llmws.protocol.messages import Sampling
from tests.integration.engine.tiny_models import tokenizer
from tests.support.listening import Listener

GREEDY = Sampling(do_sample=False, ignore_eos=True)


def request(key, model, tokens=20):
    return GenerationRequest(key=key, model=model, prompt_ids=(5, 6, 7), sampling=GREEDY, max_new_tokens=tokens)


class Cramped(TransformersLoader):
    """On a device that holds so many bytes."""

    def __init__(self, device_bytes, *, spare_bytes=0):
        super().__init__(OptimizationSection(device="cpu", threads=1), LimitsSection(max_running=2))
        self.device_bytes = device_bytes
        self.spare_bytes = spare_bytes

    def _budget(self, device):
        return self.device_bytes

    def _spare(self, devices):
        return self.spare_bytes


def claim_of(model) -> Claim:
    return Cramped(10**9).claim(model)


@pytest.fixture
def engine():
    """Makes a worker on a device of that size, and listens to it."""
    workers = []

    def make(device_bytes):
        workers.append(Worker(lambda: Cramped(device_bytes)))
        return Listener(workers[-1])

    yield make
    for worker in workers:
        worker.close()


def told(ear):
    """Loads and unloads, in order."""
    return [
        f"{type(event).__name__} {event.info.ref.name if isinstance(event, ModelLoaded) else event.name}"
        for event in ear.heard
        if isinstance(event, ModelLoaded | ModelUnloaded)
    ]


def test_two_models_take_turns_where_one_fits(engine, folder_of):
    """Each says the same every time it is there."""
    one, two = folder_of("llama"), folder_of("qwen3")
    ear = engine(max(claim_of(model).held_bytes + claim_of(model).need_bytes for model in (one, two)) + 1000)
    for key, model in (("a", one), ("b", two), ("c", one)):
        ear.engine.submit(request(key, model))
    first, other, again = ear.answer("a", "b", "c")

    assert first.ids == again.ids != other.ids
    assert told(ear) == [
        "ModelLoaded llama",
        "ModelUnloaded llama",
        "ModelLoaded qwen3",
        "ModelUnloaded qwen3",
        "ModelLoaded llama",
    ]


def test_models_that_fit_answer_side_by_side(engine, folder_of):
    """A tier each, and what each says is what it says alone."""
    models = [folder_of(name) for name in ("llama", "qwen3", "lfm2")]
    ear = engine(10**9)
    for model in models:
        ear.engine.submit(request(f"{model.name} alone", model))
    alone = ear.answer(*(f"{model.name} alone" for model in models))
    for model in models:
        ear.engine.submit(request(model.name, model))
    together = ear.answer(*(model.name for model in models))

    assert [answer.ids for answer in together] == [answer.ids for answer in alone]
    assert told(ear) == ["ModelLoaded llama", "ModelLoaded qwen3", "ModelLoaded lfm2"]


def test_streams_go_on_while_another_model_is_loaded(engine, folder_of):
    ear = engine(10**9)
    ear.load(folder_of("llama"))
    ear.engine.submit(request("a", folder_of("llama"), tokens=200))
    ear.until(lambda: bool(ear.chunks("a")))
    ear.engine.load(folder_of("qwen3"))
    ear.answer("a")
    ear.until(lambda: len(ear.models()) == 2)
    begun = next(n for n, event in enumerate(ear.heard) if isinstance(event, ModelProgress) and event.name == "qwen3")
    during = ear.heard[begun : ear.heard.index(ear.models()[-1])]

    assert any(isinstance(event, Chunk) for event in during)


def test_what_a_model_promises_does_not_depend_on_what_was_there(folder_of):
    """The same context and the same need, first or last."""
    loader = Cramped(2 * 10**6)
    alone = loader.claim(folder_of("llama"))
    other = loader.load(folder_of("qwen3"), loader.claim(folder_of("qwen3")), progress=lambda read, total: None)
    other.open_pool(other.need_bytes)

    assert loader.claim(folder_of("llama")) == alone


def test_a_model_is_promised_the_same_whenever_it_is_loaded(folder_of, tmp_path, caplog):
    """Whatever others gave back or took meanwhile, up to half of what is spare; beyond that the log says so."""
    shutil.copytree(folder_of("llama").location, tmp_path / "long")
    config = json.loads((tmp_path / "long" / "config.json").read_text())
    (tmp_path / "long" / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 100_000}))
    model = msgspec.structs.replace(folder_of("llama"), location=str(tmp_path / "long"))
    loader = Cramped(3_000_000, spare_bytes=400_000)

    def promised_with(device_bytes):
        loader.device_bytes = device_bytes
        claim = loader.claim(model)
        runner = loader.load(model, claim, progress=lambda read, total: None)
        assert runner.need_bytes == claim.need_bytes
        return runner.info.max_context

    first = promised_with(3_000_000)
    later = [promised_with(each) for each in (4_000_000, 2_850_000)]
    assert 256 < first < 100_000
    assert later == [first, first]
    assert "memory left" not in caplog.text

    assert promised_with(2_700_000) < first
    assert f"llama was promised {first} tokens; there is memory left for" in caplog.text
    assert promised_with(4_000_000) == first


UNLOADING = """
import sys, psutil, torch, transformers
from llmws.config import LimitsSection, OptimizationSection
from llmws.engine.local import import_transformers
from llmws.engine_api import ModelRef

device = sys.argv[2]
optimization = OptimizationSection(device=device, threads=1)
import_transformers(optimization)
from llmws.engine.loading import TransformersLoader

config = transformers.LlamaConfig(
    vocab_size=320, hidden_size=512, intermediate_size=2048, num_hidden_layers=6, num_attention_heads=8
)
transformers.LlamaForCausalLM(config).save_pretrained(sys.argv[1])
loader = TransformersLoader(optimization, LimitsSection(max_context=256, max_running=2))
model = ModelRef(name="m", path="models/m", location=sys.argv[1], size_bytes=1, source="models")

def memory():
    return torch.cuda.memory_allocated() if device == "cuda" else psutil.Process().memory_info().rss

def load_and_unload():
    runner = loader.load(model, loader.claim(model), progress=lambda read, total: None)
    runner.open_pool(runner.need_bytes)
    held, taken = runner.held_bytes, memory()
    runner.close()
    return held, taken

load_and_unload()  # what libraries keep for ever
before = memory()
held, taken = load_and_unload()
print(held, taken - before, memory() - before)
"""
"""Prints the bytes of the weights, what was taken while the model was there, and what was left."""


def unload(folder, device):
    folder.mkdir()
    tokenizer().save(str(folder / "tokenizer.json"))
    command = [sys.executable, "-c", UNLOADING, str(folder), device]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return [int(each) for each in result.stdout.split()]


def test_memory_comes_back_after_an_unload(tmp_path):
    """Of 100 MB, in a process of its own; no more than a tenth stays, which the allocator keeps."""
    held, taken, left = unload(tmp_path / "m", "cpu")

    assert taken > held
    assert left < held // 10


def test_gpu_memory_comes_back_after_an_unload(tmp_path):
    """Within one part in a hundred."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU: what torch has allocated after an unload is not checked here")
    held, taken, left = unload(tmp_path / "m", "cuda")

    assert taken > held
    assert left <= held // 100
