"""What goes wrong in one stream of a real model stays there, and leaves nothing behind."""

import copy
import gc
import random
import threading

import pytest
import torch
from transformers import DynamicCache, LlamaForCausalLM

from llmws.engine import memory
from llmws.engine.fallback import FallbackRunner, Increments, find_increments
from llmws.engine.fast import FastRunner
from llmws.engine.layout import layout
from llmws.engine.measure import whole_config
from llmws.engine.residency import Claim
from llmws.engine.runner import Fingerprint, Token
from llmws.engine.scripted import model_info
from llmws.engine.selfcheck import adopt
from llmws.engine.worker import Worker
from llmws.engine_api import GenerationRequest, ModelRef
from llmws.protocol import ErrorCode
from llmws.protocol.messages import Sampling
from tests.integration.engine import tiny_models
from tests.support.listening import TIMEOUT_S, Listener

POISON = 301
"""A prompt with this token goes wrong, in the way that the network was told."""

MODEL = ModelRef(name="m", path="models/m", location="/models/m", size_bytes=1, source="models")


class PoisonedLlama(LlamaForCausalLM):
    """A Llama whose forward fails for one prompt, and waits where the test wants it to."""

    def __init__(self, config):
        super().__init__(config)
        self.fault = None
        self.gate = None
        self.forwards = 0

    def forward(self, input_ids, **inputs):
        self.forwards += 1
        if self.gate is not None:
            assert self.gate.acquire(timeout=TIMEOUT_S)
        if isinstance(self.fault, Exception) and POISON in input_ids[0].tolist():
            raise self.fault
        return super().forward(input_ids=input_ids, **inputs)


class Given:
    """A `Loader` of one runner that is there already."""

    def __init__(self, runner):
        self.runner = runner

    def fingerprint(self, model):
        return Fingerprint(self.runner.info.digest, self.runner.info.tokenizer_digest)

    def claim(self, model):
        return Claim(name=model.name, devices=("cpu",), budget_bytes=10**9, held_bytes=0, need_bytes=0)

    def load(self, model, claim, *, progress):
        return self.runner


def fast_runner_of(network):
    config = whole_config(network.config)
    assert adopt(network, config) is None
    network.forwards = 0
    runner = FastRunner(
        network,
        tiny_models.tokenizer(),
        info=model_info(MODEL, max_context=tiny_models.POSITIONS, max_running=4),
        eos_ids=frozenset({tiny_models.EOS}),
        layout=layout(config),
        workspace_bytes=0,
        held_bytes=0,
    )
    runner.open_pool(2 * runner.need_bytes)
    return runner


def runner_of(network, *, increments=Increments.CHUNKS, max_running=4):
    footprint = memory.footprint(network.config.to_dict(), dtype_bytes=4, chunk=16)
    runner = FallbackRunner(
        network,
        tiny_models.tokenizer(),
        info=model_info(MODEL, max_context=tiny_models.POSITIONS, max_running=max_running),
        eos_ids=frozenset({tiny_models.EOS}),
        footprint=footprint,
        increments=increments,
        held_bytes=0,
    )
    runner.open_pool(10**9)
    return runner


@pytest.fixture
def network():
    torch.manual_seed(3)
    return PoisonedLlama(copy.deepcopy(tiny_models.CONFIGS["llama"])).eval()


@pytest.fixture(params=[runner_of, fast_runner_of], ids=["fallback", "fast"])
def runner(request, network):
    return request.param(network)


@pytest.fixture
def ear(runner):
    fatal = []
    worker = Worker(lambda: Given(runner), on_fatal=fatal.append)
    ear = Listener(worker)
    ear.fatal = fatal
    ear.load(MODEL)
    yield ear
    worker.close()


def request(key, *prompt, **changes):
    fields = {"sampling": Sampling(do_sample=False, ignore_eos=True), "max_new_tokens": 12}
    return GenerationRequest(key=key, prompt_ids=prompt or (5, 6, 7), **(fields | changes))


@pytest.mark.parametrize(
    ("fault", "code", "message"),
    [
        (None, ErrorCode.MODEL_FAILED, "the model computed no usable logits"),
        (ValueError("/secret/path"), ErrorCode.MODEL_FAILED, "the model failed on this request"),
        (torch.OutOfMemoryError("CUDA"), ErrorCode.MODEL_OOM, "there is not enough memory for this request"),
        (RuntimeError("[enforce fail] can't allocate memory: you tried"), ErrorCode.MODEL_OOM, "not enough memory"),
    ],
    ids=["nan", "exception", "cuda-oom", "cpu-oom"],
)
def test_one_streams_fault_ends_that_stream(fault, code, message, ear, network):
    ear.engine.submit(request("alone"))
    (alone,) = ear.answer("alone")
    network.fault = fault
    network.get_input_embeddings().weight.data[POISON] = float("nan")
    for key, prompt in (("well-1", ()), ("sick", (5, POISON)), ("well-2", ())):
        ear.engine.submit(request(key, *prompt))
    one, sick, two = ear.answer("well-1", "sick", "well-2")

    assert (sick.error_code, sick.ids) == (code, ())
    assert message in sick.error_message
    assert (one.ids, two.ids) == (alone.ids, alone.ids)
    assert (one.finish, two.finish) == ("length", "length")


def test_a_device_that_is_gone_ends_the_process_and_no_stream(ear, network):
    network.fault = torch.AcceleratorError("an illegal memory access was encountered")
    ear.engine.submit(request("a", 5, POISON))
    ear.engine._thread.join(TIMEOUT_S)

    assert [type(error).__name__ for error in ear.fatal] == ["DeviceLostError"]
    assert ear.engine.take() == []


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"prompt_ids": ()}, ErrorCode.BAD_REQUEST),
        ({"prompt_ids": (5, tiny_models.VOCABULARY)}, ErrorCode.BAD_REQUEST),
        ({"prompt_ids": (5,), "max_new_tokens": tiny_models.POSITIONS}, ErrorCode.CONTEXT_TOO_LONG),
        ({"prompt_ids": (5,), "sampling": Sampling(logit_bias={"999": 1.0})}, ErrorCode.BAD_REQUEST),
    ],
)
def test_what_the_model_cannot_serve_is_refused_before_it_runs(changes, code, ear, network, runner):
    before = network.forwards
    fields = {"key": "a", "sampling": Sampling(), "max_new_tokens": 4} | changes
    ear.engine.submit(GenerationRequest(**fields))

    assert ear.answer("a")[0].error_code == code
    assert network.forwards == before
    assert runner._scheduler.streams == 0 if isinstance(runner, FastRunner) else runner._streams == {}


def test_a_cancel_takes_effect_within_one_step(ear, network):
    """The step under way when it comes is the last."""
    network.gate = threading.Semaphore(3)
    ear.engine.submit(request("a", max_new_tokens=50))
    ear.until(lambda: sum(len(chunk.ids) for chunk in ear.chunks("a")) == 3)
    ear.engine.cancel("a")
    network.gate.release()
    ear.engine.submit(request("b", max_new_tokens=1))
    network.gate.release(20)
    ear.answer("b")

    assert sum(len(chunk.ids) for chunk in ear.chunks("a")) <= 4
    assert network.forwards <= 5


def test_a_long_prompt_is_cancelled_between_its_chunks(ear, network):
    network.gate = threading.Semaphore(2)
    ear.engine.submit(request("a", *([9] * 200)))
    ear.engine.cancel("a")
    network.gate.release(20)
    ear.engine.submit(request("b", max_new_tokens=1))
    ear.answer("b")

    assert ear.chunks("a") == []
    assert network.forwards <= 4


def test_two_hundred_random_cancels_leave_nothing(network):
    """No stream, no reservation, no cache, and an engine that works."""

    def caches():
        gc.collect()
        return sum(type(thing) is DynamicCache for thing in gc.get_objects())

    before = caches()
    runner = runner_of(network)
    worker = Worker(lambda: Given(runner))
    ear = Listener(worker)
    ear.load(MODEL)
    chance = random.Random(5)
    for number in range(200):
        worker.submit(request(f"c{number}", *([9] * chance.randint(1, 60)), max_new_tokens=40))
        if chance.random() < 0.5:
            ear.heard += worker.take()
        worker.cancel(f"c{chance.randint(max(0, number - 3), number)}")
    for number in range(200):
        worker.cancel(f"c{number}")
    worker.submit(request("last"))
    (last,) = ear.answer("last")
    state = worker.load_state()

    assert last.finish == "length"
    assert (state.running, state.queued) == (0, 0)
    assert (runner._streams, runner._reserved_bytes) == ({}, {})
    assert caches() == before
    worker.close()


def test_random_cancels_leave_no_page(network, cancels):
    """At any time: before a stream's first step, in its prompt, between its tokens, while it gives way."""
    runner = fast_runner_of(network)
    scheduler, sampler = runner._scheduler, runner._sampler
    pages = scheduler.free_pages
    chance = random.Random(7)
    streams: list[str] = []
    for number in range(cancels):
        fresh = request(f"c{number}", *([9] * chance.randint(1, 60)), max_new_tokens=chance.randint(1, 190))
        if runner.has_room(fresh):
            runner.start(fresh)
            streams.append(fresh.key)
        for _ in range(chance.randint(0, 2)):
            assert all(isinstance(token, Token) for token in runner.step(streams).values())
        if streams:
            runner.free(streams.pop(chance.randrange(len(streams))))
    for key in streams:
        runner.free(key)

    assert (scheduler.streams, scheduler.free_pages) == (0, pages)
    assert (sampler._requests, runner._untold) == ({}, {})
    assert runner.step([]) == {}


def test_memory_is_reserved_for_the_whole_context(network):
    """What is admitted can always be finished: the second waits, though its prompt would fit."""
    runner = runner_of(network)
    half, workspace = runner._footprint.cache_bytes(100), runner._footprint.workspace_bytes(tiny_models.POSITIONS)
    runner.close_pool()
    runner.open_pool(2 * half - 1 + workspace)
    first, second = request("a", max_new_tokens=97), request("b", max_new_tokens=97)
    assert runner.has_room(first)
    runner.start(first)

    assert not runner.has_room(second)
    runner.free("a")
    assert runner.has_room(second)


# --- models that cannot go on from a cache ---------------------------------------------------------------------------


class Forgetful(LlamaForCausalLM):
    """Returns no cache, like the oldest architectures."""

    def forward(self, input_ids, **inputs):
        outputs = super().forward(input_ids=input_ids)
        outputs.past_key_values = None
        return outputs


class OneByOne(LlamaForCausalLM):
    """Forgets what came before when it gets more than one token at a time, as Mamba's scan does."""

    def forward(self, input_ids, past_key_values=None, **inputs):
        if input_ids.shape[1] > 1:
            past_key_values = None
        return super().forward(input_ids=input_ids, past_key_values=past_key_values, use_cache=True)


@pytest.mark.parametrize(("kind", "increments"), [(Forgetful, Increments.NONE), (OneByOne, Increments.TOKENS)])
def test_a_model_that_cannot_go_on_is_found_out_and_still_right(kind, increments):
    torch.manual_seed(3)
    network = kind(tiny_models.CONFIGS["llama"]).eval()
    torch.manual_seed(3)
    whole = LlamaForCausalLM(tiny_models.CONFIGS["llama"]).eval()
    expected = whole.generate(torch.tensor([[5, 6, 7]]), do_sample=False, max_new_tokens=12)[0, 3:].tolist()
    assert find_increments(network, tiny_models.VOCABULARY) is increments

    runner = runner_of(network, increments=increments)
    for cut in (0, 5):
        runner.start(request("a", emitted_ids=tuple(expected[:cut])))
        ids = expected[:cut]
        while len(ids) < 12:
            ids += [token.id for token in runner.step(["a"]).values()]
        runner.free("a")
        assert ids == expected
