"""`llmws models`, in this process, on tiny models; what it says is what a load then does."""

import json
import shutil
import struct

import pytest
import transformers

from llmws.cli import main
from llmws.config import LimitsSection, OptimizationSection
from llmws.engine.loading import TransformersLoader
from llmws.engine_api import ModelRef
from tests.integration.engine import tiny_models

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


@pytest.fixture
def models(tmp_path, folder_of):
    """A models folder with a model for each tier, and one that cannot be served."""
    folder = tmp_path / "models"
    for name in ("llama", "mamba"):
        shutil.copytree(folder_of(name).location, folder / name)
    (folder / "pickled").mkdir()
    (folder / "pickled" / "config.json").write_text(json.dumps(LLAMA_3_8B))
    (folder / "pickled" / "pytorch_model.bin").write_bytes(b"")
    return folder


@pytest.fixture
def llmws(tmp_path, models, capsys):
    """Runs a command; returns its exit status, output and errors."""
    (tmp_path / "config.json").write_text('{"optimization": {"device": "cpu", "threads": 1}}')

    def run(*arguments):
        places = (
            "--config",
            str(tmp_path / "config.json"),
            "--state-dir",
            str(tmp_path / "state"),
            "--models-dir",
            str(models),
        )
        status = main(["models", *arguments, *places])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def bare(tmp_path, **changes):
    """The configuration of a model that nobody has downloaded."""
    folder = tmp_path / "bare"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA_3_8B | changes))
    return str(folder / "config.json")


def test_every_model_is_listed_with_the_tier_that_it_would_get(llmws):
    status, out, err = llmws()

    rows = [line.split("\t") for line in out.splitlines()]
    assert status == 0
    assert [(row[0], *row[2:]) for row in rows] == [
        ("llama", "models", "llama", "fast", "the self-check at load decides"),
        ("mamba", "models", "mamba", "fallback", "its code in transformers takes no other attention"),
    ]
    assert err.startswith("llmws: models/pickled is not offered: its weights are pickles")


def test_the_list_is_there_for_machines(llmws):
    listed = json.loads(llmws("list", "--json")[1])

    assert [(model["name"], model["tier"], model["reason"]) for model in listed["models"]] == [
        ("llama", "fast", "the self-check at load decides"),
        ("mamba", "fallback", "its code in transformers takes no other attention"),
    ]
    assert [problem["path"] for problem in listed["not_offered"]] == ["models/pickled"]


def test_options_may_come_before_the_action(llmws, tmp_path, models, capsys):
    places = ("--config", str(tmp_path / "config.json"), "--models-dir", str(models))
    assert main(["models", *places, "--json", "list"]) == 0
    assert [model["name"] for model in json.loads(capsys.readouterr().out)["models"]] == ["llama", "mamba"]


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "deepseek", "qwen3-next", "lfm2"])
def test_a_load_promises_what_was_estimated(name, folder_of):
    """To within a few buffers of the weights."""
    model = folder_of(name)
    loader = TransformersLoader(OptimizationSection(device="cpu", threads=1), LimitsSection())
    claim = loader.claim(model)
    runner = loader.load(model, claim, progress=lambda read, total: None)

    assert runner.need_bytes == claim.need_bytes
    assert 0 <= runner.held_bytes - claim.held_bytes <= 64


def test_what_a_class_makes_beside_its_weights_is_counted(tmp_path):
    """A mask of all positions squared in each layer: here three times the weights, with more positions any memory."""
    config = transformers.GPTNeoConfig(
        vocab_size=320,
        max_position_embeddings=512,
        hidden_size=16,
        num_layers=2,
        attention_types=[[["global"], 2]],
        num_heads=2,
        bos_token_id=1,
        eos_token_id=0,
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny_models.tokenizer().save(str(tmp_path / "tokenizer.json"))
    model = ModelRef(name="neo", path="models/neo", location=str(tmp_path), size_bytes=0, source="models")
    loader = TransformersLoader(OptimizationSection(device="cpu", threads=1), LimitsSection())
    claim = loader.claim(model)

    assert claim.held_bytes > 2 * 512 * 512
    assert claim.held_bytes == loader.load(model, claim, progress=lambda read, total: None).held_bytes


def test_figures_of_a_model_that_is_there(llmws):
    found = json.loads(llmws("estimate", "llama", "--json")[1])
    head_dim = tiny_models.CONFIGS["llama"].hidden_size // 4

    assert (found["type"], found["tier"], found["dtype"], found["device"]) == ("llama", "fast", "float32", "cpu")
    assert found["sorts"] == [{"layers": 2, "token_bytes": 2 * 2 * 2 * head_dim * 4, "window": None, "state_bytes": 0}]
    assert (found["max_context"], found["positions"]) == (tiny_models.POSITIONS, tiny_models.POSITIONS)
    assert [(each["context"], each["side_by_side"]) for each in found["streams"]] == [(tiny_models.POSITIONS, 32)]


def test_a_bare_configuration_is_planned_for_a_gpu_that_is_not_there(llmws, tmp_path):
    """8.03 billion parameters, 128 KiB a token; the table ends with the longest context."""
    found = json.loads(llmws("estimate", bare(tmp_path), "--vram", "24", "--json")[1])
    contexts = [each["context"] for each in found["streams"]]
    fitting = found["budget_bytes"] - found["weights_bytes"]

    assert (found["dtype"], found["device"]) == ("bfloat16", "cuda")
    assert found["weights_bytes"] // 10**6 == 2 * 8030
    assert [sort["token_bytes"] for sort in found["sorts"]] == [128 * 1024]
    assert contexts == [4096, 8192, found["max_context"]]
    assert all(each["cache_bytes"] * each["side_by_side"] <= fitting for each in found["streams"])
    assert found["streams"][-1]["side_by_side"] == 1


def test_a_model_that_does_not_fit_says_so(llmws, tmp_path):
    status, out, _ = llmws("estimate", bare(tmp_path), "--vram", "12")

    assert status == 0
    assert out.splitlines()[-1] == "max context  none: the weights alone do not fit"


def test_one_context_may_be_asked_for(llmws, tmp_path):
    out = llmws("estimate", bare(tmp_path), "--vram", "80", "--dtype", "float16", "--context", "200000")[1]

    assert "llama, float16 on cuda" in out
    assert out.splitlines()[-1].split() == ["200000", "26.2", "GB", "too", "long"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/nowhere", "llmws: there is no model /nowhere: neither a folder nor a listed name\n"),
        ("x" * 300, f"llmws: there is no model {'x' * 300}: neither a folder nor a listed name\n"),
        (".", "llmws: .: it has no config.json\n"),
    ],
)
def test_a_wrong_path_is_named(path, message, llmws, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")

    assert llmws("estimate", path) == (1, "", message)


def header(tensors):
    head = tensors if isinstance(tensors, bytes) else json.dumps(tensors).encode()
    return struct.pack("<Q", len(head)) + head


ODD_CONFIGS = {
    "a number as text": ({"num_hidden_layers": "2"}, "num_hidden_layers"),
    "a fraction": ({"hidden_size": 32.5}, "hidden_size"),
    "no number": ({"vocab_size": None}, "vocab_size"),
    "no heads": ({"num_attention_heads": 0}, "ZeroDivisionError"),
    "too few kinds of layers": ({"layer_types": ["full_attention"]}, "layer_types"),
    "too many layers": ({"num_hidden_layers": 300_000}, "more than 4096 parts (num_hidden_layers)"),
    "more words than there is memory": ({"vocab_size": 10**18}, "a number beyond 16777216 (vocab_size)"),
}
NO_HEADER = "has a header that makes no sense"
CUT_SHORT = "is cut short"
ODD_HEADERS = {
    "no JSON": (b"not JSON!!", NO_HEADER),
    "a list": ([1, 2], NO_HEADER),
    "no place": ({"a": {"dtype": "F32", "shape": [1]}}, NO_HEADER),
    "null": ({"a": None}, NO_HEADER),
    "text": ({"a": {"dtype": "F32", "shape": [1], "data_offsets": ["0", "4"]}}, NO_HEADER),
    "backwards": ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [100, 0]}}, NO_HEADER),
    "beyond any number": ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 10**30]}}, NO_HEADER),
    "beyond the file": ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, CUT_SHORT),
}


@pytest.mark.parametrize("oddity", ODD_CONFIGS)
def test_an_odd_configuration_is_refused_in_one_line(oddity, llmws, tmp_path):
    changes, why = ODD_CONFIGS[oddity]
    status, out, err = llmws("estimate", bare(tmp_path, **changes))

    assert (status, out, err.count("\n")) == (1, "", 1)
    assert why in err


@pytest.mark.parametrize("oddity", ODD_HEADERS)
def test_an_odd_header_of_weights_is_refused_in_one_line(oddity, llmws, models):
    tensors, why = ODD_HEADERS[oddity]
    (models / "llama" / "model.safetensors").write_bytes(header(tensors))
    status, out, err = llmws("estimate", "llama")

    assert (status, out, err) == (1, "", f"llmws: models/llama is not offered: model.safetensors {why}\n")


def test_one_bad_folder_does_not_spoil_the_list(llmws, models):
    """Its row says what is wrong."""
    config = json.loads((models / "mamba" / "config.json").read_text())
    (models / "mamba" / "config.json").write_text(json.dumps(config | {"hidden_size": "x"}))
    status, out, _ = llmws("list")
    rows = [line.split("\t") for line in out.splitlines()]

    assert (status, [row[0] for row in rows]) == (0, ["llama", "mamba"])
    assert "hidden_size" in rows[1][-1]


def test_a_folder_that_would_not_be_served_is_estimated_and_told_of(llmws, models):
    status, out, err = llmws("estimate", str(models / "pickled"), "--vram", "24")

    assert (status, out.splitlines()[2].endswith(", counted from config.json")) == (0, True)
    assert err == (
        f"llmws: {models / 'pickled'} is not offered: its weights are pickles, which can run code; "
        "convert them to safetensors\n"
    )


def test_a_name_that_is_not_offered_is_told_why(llmws):
    status, out, err = llmws("estimate", "pickled")

    assert (status, out) == (1, "")
    assert err.startswith("llmws: models/pickled is not offered: its weights are pickles")


def test_a_folder_without_models_is_named(llmws, models):
    shutil.rmtree(models)

    assert llmws("list")[2] == f"llmws: no models in {models}\n"


def test_a_configuration_that_asks_for_code_is_not_read(llmws, tmp_path):
    status, out, err = llmws("estimate", bare(tmp_path, auto_map={"AutoConfig": "evil.Evil"}), "--vram", "24")

    assert (status, out) == (1, "")
    assert "config.json asks for custom code (auto_map); if transformers knows" in err


@pytest.mark.parametrize("arguments", [("--vram", "x"), ("--vram", "-1"), ("--context", "0"), ("--dtype", "int8")])
def test_wrong_numbers_are_refused(arguments, llmws):
    with pytest.raises(SystemExit, match="2"):
        llmws("estimate", "llama", *arguments)
