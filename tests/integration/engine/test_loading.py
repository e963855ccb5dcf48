"""What is loaded, what is refused and why, and what goes on meanwhile."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import safetensors.torch
import torch
import transformers
from torch._inductor.runtime.cache_dir_utils import cache_dir

from llmws.config import LimitsSection, OptimizationSection
from llmws.engine.devices import no_flash_attention
from llmws.engine.loading import TransformersLoader
from llmws.engine.local import LocalEngine, transformers_loader
from llmws.engine.reading import read_network
from llmws.engine.sampler import SAMPLER_VERSION
from llmws.engine_api import GenerationRequest, ModelFailed, ModelLoaded, ModelProgress
from llmws.errors import LlmwsError, ModelInvalidError, ModelOutOfMemoryError
from llmws.protocol import ErrorCode
from llmws.protocol.messages import Sampling
from tests.integration.engine.tiny_models import EOS, tokenizer
from tests.support.listening import Listener
from tests.support.safetensors_file import safetensors_bytes


@pytest.fixture
def copy(folder_of, tmp_path):
    """A copy of the tiny Llama that a test may damage."""
    folder = tmp_path / "damaged"
    shutil.copytree(folder_of("llama").location, folder)
    return msgspec.structs.replace(folder_of("llama"), name="damaged", location=str(folder))


@pytest.fixture
def loader():
    return TransformersLoader(OptimizationSection(device="cpu", threads=1), LimitsSection())


def load(loader, model):
    return loader.load(model, loader.claim(model), progress=lambda read, total: None)


def edit_config(folder, **changes):
    path = Path(folder) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop_weights(folder):
    for path in Path(folder).glob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))


def link_out(folder):
    path = Path(folder) / "generation_config.json"
    path.unlink()
    path.symlink_to(Path(__file__))


def lose_a_weight(folder):
    path = Path(folder) / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


def spoil_a_weight(folder):
    path = Path(folder) / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors["model.norm.weight"][:] = float("nan")
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


def claim_terabytes(folder):
    """In a file with a hole, which takes no room on a disk."""
    head = safetensors_bytes({"w": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}})
    path = Path(folder) / "model.safetensors"
    path.write_bytes(head)
    os.truncate(path, len(head) + 4 * 10**12)


def cut_short(folder):
    path = Path(folder) / "model.safetensors"
    os.truncate(path, path.stat().st_size - 1)


DAMAGES = {
    "pickle": (drop_weights, ErrorCode.MODEL_FAILED, "its weights are pickles, which can run code"),
    "unknown": (
        lambda f: edit_config(f, model_type="llama-9"),
        ErrorCode.MODEL_FAILED,
        "does not know the model type 'llama-9'",
    ),
    "remote code": (
        lambda f: edit_config(f, model_type="evil", auto_map={"AutoModelForCausalLM": "evil.Evil"}),
        ErrorCode.MODEL_FAILED,
        (
            "config.json asks for custom code (auto_map); if transformers knows the model type itself, remove the key "
            "auto_map from config.json: its files are then read as any other's"
        ),
    ),
    "no language model": (
        lambda f: edit_config(f, model_type="vit"),
        ErrorCode.MODEL_FAILED,
        "are not causal language models",
    ),
    "no config": (
        lambda f: (Path(f) / "config.json").unlink(),
        ErrorCode.MODEL_FAILED,
        "it has no config.json",
    ),
    "a link out of the folder": (
        link_out,
        ErrorCode.MODEL_FAILED,
        "generation_config.json is a link out of the folder",
    ),
    "layers without end": (
        lambda f: edit_config(f, model_type="hrm_text", num_layers_per_stack=10**7),
        ErrorCode.MODEL_FAILED,
        "its network has more than 16384 modules",
    ),
    "layers without end, by their class": (
        lambda f: edit_config(f, model_type="hrm_text", num_hidden_layers=4096, H_cycles=2),
        ErrorCode.MODEL_FAILED,
        "it has more than 4096 layers",
    ),
    "a huge config": (
        lambda f: (Path(f) / "config.json").write_text(" " * (4 * 2**20 + 1)),
        ErrorCode.MODEL_FAILED,
        "config.json is larger than 4194304 bytes",
    ),
    "no tokenizer": (
        lambda f: (Path(f) / "tokenizer.json").unlink(),
        ErrorCode.MODEL_FAILED,
        "the model's tokenizer.json cannot be used: No such file",
    ),
    "odd tokens": (
        lambda f: (Path(f) / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"x": {"content": "<y>"}}}'),
        ErrorCode.MODEL_FAILED,
        "the model's tokenizer_config.json cannot be used: its tokens cannot be added",
    ),
    "other weights": (
        lambda f: edit_config(f, text_config={"transformers_weights": "weights.pt"}),
        ErrorCode.MODEL_FAILED,
        "config.json names other files to read (transformers_weights)",
    ),
    "other configuration": (
        lambda f: edit_config(f, configuration_files=["config.5.0.0.json"]),
        ErrorCode.MODEL_FAILED,
        "config.json names other files to read (configuration_files)",
    ),
    "quantised weights": (
        lambda f: edit_config(f, text_config={"quantization_config": {"quant_method": "gptq"}}),
        ErrorCode.MODEL_FAILED,
        "its weights are quantised (gptq), which this version does not read",
    ),
    "an adapter": (lambda f: (Path(f) / "adapter_config.json").write_text("{}"), ErrorCode.MODEL_FAILED, "an adapter"),
    "no number comes out": (spoil_a_weight, ErrorCode.MODEL_FAILED, "the model computes no usable logits"),
    "a weight is lost": (
        lose_a_weight,
        ErrorCode.MODEL_FAILED,
        "lack 1 weights, among them model.layers.1.mlp.up_proj",
    ),
    "too large": (claim_terabytes, ErrorCode.MODEL_OOM, "the weights take 4000.0 GB"),
    "cut short": (cut_short, ErrorCode.MODEL_FAILED, "model.safetensors is cut short"),
    "a number as text": (
        lambda f: edit_config(f, num_hidden_layers="2"),
        ErrorCode.MODEL_FAILED,
        "transformers cannot read it",
    ),
    "wrong shape": (lambda f: edit_config(f, intermediate_size=48), ErrorCode.MODEL_FAILED, ""),
    "not safetensors": (
        lambda f: (Path(f) / "model.safetensors").write_bytes(b"\x80\x04pickle"),
        ErrorCode.MODEL_FAILED,
        "not a safetensors file",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_is_refused_and_the_old_one_serves_on(damage, copy, ear, serve):
    info = serve("qwen3")
    spoil, code, message = DAMAGES[damage]
    spoil(copy.location)

    failed = ear.load(copy)
    ear.engine.submit(
        GenerationRequest(key="after", prompt_ids=(5,), sampling=Sampling(do_sample=False), max_new_tokens=3)
    )

    assert isinstance(failed, ModelFailed)
    assert (failed.code, failed.kept) == (code, info)
    assert message in failed.message
    assert copy.location not in failed.message
    assert len(ear.answer("after")[0].ids) == 3
    ear.heard = [ModelLoaded(info=info)]


def test_behind_the_rule_over_configurations_transformers_trusts_no_folder_either(copy, tmp_path):
    """`auto_map` names a file that would leave a mark, were it run."""
    mark = tmp_path / "mark"
    (Path(copy.location) / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nEvil = object\n")
    edit_config(copy.location, auto_map={"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"})
    read_network(Path(copy.location), torch.float32, {})

    assert not mark.exists()


def test_progress_is_told_in_bytes_up_to_all_of_them(copy, ear, serve):
    serve("qwen3")
    ear.load(copy)
    reports = [event for event in ear.heard if isinstance(event, ModelProgress)]

    assert {report.name for report in reports} == {"damaged"}
    assert [report.bytes for report in reports] == sorted(report.bytes for report in reports)
    assert reports[-1].bytes == reports[-1].total_bytes > 0


def test_what_is_promised(folder_of):
    """The operator's limits, the model's positions, the dtype that was asked for."""
    model = folder_of("llama")
    engine = LocalEngine(
        OptimizationSection(device="cpu", dtype="bfloat16", threads=1), LimitsSection(max_context=100, max_running=2)
    )
    ear = Listener(engine)
    info = ear.load(model).info
    engine.close()

    assert (info.ref, info.device, info.dtype) == (model, "cpu", "bfloat16")
    assert (info.max_context, info.max_running) == (100, 2)
    assert (info.engine, info.tier, info.tier_reason) == (f"fast/{SAMPLER_VERSION}", "fast", "")
    assert (info.vision, info.flash_attention, info.compiled) == (False, False, False)
    assert len(info.digest) == len(info.tokenizer_digest) == 64


@pytest.mark.parametrize("wish", [True, "auto", False])
def test_flash_attention_is_not_claimed_where_there_is_none(wish, folder_of, caplog):
    """It changes no answer: who wishes for it on a processor is served, and told."""
    optimization = OptimizationSection(device="cpu", threads=1, flash_attention=wish)
    info = load(TransformersLoader(optimization, LimitsSection()), folder_of("llama")).info

    assert info.flash_attention is False
    assert ("llama runs without flash attention: it is for GPUs" in caplog.messages) == (wish is True)


@pytest.mark.parametrize(
    ("device", "dtype", "reason"),
    [("cpu", torch.bfloat16, "it is for GPUs"), ("cuda", torch.float32, "it is for float16 and bfloat16")],
)
def test_why_there_is_no_flash_attention(device, dtype, reason):
    assert no_flash_attention(torch.device(device), dtype) == reason


COMPILED = OptimizationSection(device="cpu", threads=1, tier="fallback", compile=True)


def test_a_compiled_model_says_so(folder_of):
    """Its forward is the compiler's from the first token on."""
    forwards = []

    def compiler(forward, *, dynamic):
        def compiled(*args, **inputs):
            forwards.append(dynamic)
            return forward(*args, **inputs)

        return compiled

    runner = load(TransformersLoader(COMPILED, LimitsSection(), compiler=compiler), folder_of("llama"))
    tried = len(forwards)
    runner.open_pool(runner.need_bytes)
    runner.start(GenerationRequest(key="a", prompt_ids=(5, 6), sampling=Sampling(do_sample=False), max_new_tokens=1))
    runner.step(["a"])

    assert runner.info.compiled
    assert set(forwards) == {True}
    assert len(forwards) == tried + 1


def test_what_is_compiled_is_kept_where_only_the_owner_writes(tmp_path, monkeypatch, caplog):
    """Torch runs what it finds there."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/tmp/everybody's")
    caplog.set_level("INFO")
    transformers_loader(COMPILED, LimitsSection(), cache_dir=tmp_path / "state" / "cache")

    assert cache_dir() == str(tmp_path / "state" / "cache")
    assert stat.S_IMODE((tmp_path / "state" / "cache").stat().st_mode) == 0o700
    assert caplog.messages == ["importing torch"]


def test_a_model_that_cannot_be_compiled_goes_on_without(folder_of, caplog):
    def compiler(forward, *, dynamic):
        def compiled(*args, **inputs):
            raise RuntimeError("no C++ compiler found")

        return compiled

    runner = load(TransformersLoader(COMPILED, LimitsSection(), compiler=compiler), folder_of("llama"))

    assert not runner.info.compiled
    assert "the model cannot be compiled: no C++ compiler found" in caplog.messages


def test_the_operator_can_keep_a_model_from_the_fast_tier(folder_of):
    info = load(
        TransformersLoader(COMPILED, LimitsSection(), compiler=lambda forward, dynamic: forward), folder_of("llama")
    ).info

    assert (info.tier, info.tier_reason, info.attention) == ("fallback", "optimization.tier says so", "sdpa")


@pytest.mark.usefixtures("loader")
def test_attention_that_plans_for_every_new_length_is_not_used():
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_caps_on_scores_are_in_what_the_self_check_compares_with(folder_of, monkeypatch):
    """There are versions of transformers that take fused attention for such a model, which leaves them out."""
    monkeypatch.setattr(transformers.Gemma2PreTrainedModel, "_supports_sdpa", True)
    slow = TransformersLoader(OptimizationSection(device="cpu", threads=1, tier="fallback"), LimitsSection())

    assert load(slow, folder_of("gemma2")).info.attention == "eager"


def test_the_models_own_positions_bound_the_context(serve):
    assert serve("gpt2").max_context == 256


def test_tokens_that_the_tokenizers_configuration_adds_are_decoded(copy, loader):
    """`<call>` is text, `<|end|>` is special and ends the answer; `tokenizer.json` knows neither."""
    folder = Path(copy.location)
    call = tokenizer().get_vocab_size()
    end = call + 1
    decoder = {str(call): {"content": "<call>", "special": False}, str(end): {"content": "<|end|>", "special": True}}
    config = {"added_tokens_decoder": decoder, "eos_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    runner = load(loader, copy)

    assert runner.decode([call, end]) == "<call>"
    assert runner.eos_ids == {EOS, end}


def test_a_panic_of_the_tokenizer_is_an_error_like_any_other(copy, loader):
    """The library's panics are not even an Exception; unseen, one would end the engine's thread."""

    class Panic(BaseException):
        pass

    class Panicking:
        def decode(self, ids, skip_special_tokens):
            raise Panic

    runner = load(loader, copy)
    runner._tokenizer = Panicking()

    with pytest.raises(ModelInvalidError, match="the model's tokenizer failed on this answer"):
        runner.decode([5])


@pytest.mark.parametrize("eos", [[EOS, None], "x", [[1]], [True], None])
def test_odd_ends_of_an_answer_are_passed_over(eos, copy, loader):
    path = Path(copy.location) / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": eos}))
    runner = load(loader, copy)

    assert runner.eos_ids == {EOS}


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_memory_that_runs_out_in_a_load_is_said_so(error, copy, loader):
    def progress(read, total):
        raise error

    with pytest.raises(ModelOutOfMemoryError, match="there is not enough memory for damaged"):
        loader.load(copy, loader.claim(copy), progress=progress)


@pytest.mark.parametrize("damage", ["other weights", "no tokenizer", "too large", "cut short", "a number as text"])
def test_no_model_makes_room_for_one_that_cannot_be_served(damage, copy, loader):
    spoil, code, message = DAMAGES[damage]
    spoil(copy.location)

    with pytest.raises(LlmwsError, match=message.partition("(")[0]) as caught:
        loader.claim(copy)
    assert caught.value.code == code


def test_a_device_that_is_not_there_is_named(folder_of):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    engine = LocalEngine(OptimizationSection(device="cuda"), LimitsSection())
    failed = Listener(engine).load(folder_of("llama"))
    engine.close()

    assert failed.message == "optimization.device is cuda, but torch finds no CUDA device"


def test_the_event_loop_never_waits_for_torch():
    """Neither the engine nor the probe imports it; the worker's thread does, later."""
    code = (
        "import sys, llmws.engine.local, llmws.engine.probe, llmws.engine.scripted, llmws.engine.memory\n"
        "from llmws.config import LimitsSection, OptimizationSection\n"
        "engine = llmws.engine.local.LocalEngine(OptimizationSection(), LimitsSection())\n"
        "engine.start(lambda: None)\n"
        "heavy = {'torch', 'transformers', 'tokenizers', 'numpy'} & set(sys.modules)\n"
        "engine.close()\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)

    assert (result.returncode, result.stderr) == (0, "")
