"""What a scan offers, what it refuses, and that deleting touches nothing else."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmws.catalog import Catalog, Problem
from llmws.engine_api import ModelRef
from llmws.errors import BadRequestError, ModelNotFoundError, StorageError
from tests.support.hostile_names import HOSTILE
from tests.support.safetensors_file import EMPTY

AUTO_MAP = (
    "config.json asks for custom code (auto_map); if transformers knows the model type itself, remove the key auto_map "
    "from config.json: its files are then read as any other's"
)
CONFIG: dict[str, Any] = {"model_type": "llama", "_name_or_path": "x/y", "_attn_implementation_autoset": True}


def make(folder: Path, *, config: object = CONFIG, **files: bytes | None) -> Path:
    """A model's folder; `files` are written beside `config.json` and `model.safetensors`, or left out when None."""
    folder.mkdir(parents=True)
    contents = {"config.json": json.dumps(config).encode(), "model.safetensors": EMPTY}
    contents |= {name.replace("__", "."): content for name, content in files.items()}
    for name, content in contents.items():
        if content is not None:
            (folder / name).write_bytes(content)
    return folder


class Home:
    """The folders of one installation."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.models = root / "models"
        self.own = root / "var" / "models"
        self.bundled = root / "package"
        self.catalog = Catalog(self.models, self.own, self.bundled)

    def paths(self) -> list[str]:
        return [model.path for model in self.catalog.scan()]

    def problem(self) -> str:
        """The one reason why the one folder is not offered."""
        assert self.paths() == []
        [problem] = self.catalog.problems()
        return problem.reason

    def files(self) -> set[str]:
        return {str(path.relative_to(self.root)) for path in self.root.rglob("*")}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


# --- scan ------------------------------------------------------------------------------------------------------------


def test_without_folders_there_are_no_models(home: Home) -> None:
    assert (home.catalog.scan(), home.catalog.problems()) == ([], [])


def test_models_are_listed_by_folder_then_name(home: Home) -> None:
    make(home.own / "alpha")
    make(home.models / "zeta")
    make(home.models / "Beta", more=b"x" * 100)
    make(home.bundled / "llmws-guide")
    (home.models / ".gitkeep").touch()
    (home.models / ".cache").mkdir()
    (home.models / "README").write_text("not a folder")
    assert home.paths() == ["models/Beta", "models/llmws-guide", "models/zeta", "var/models/alpha"]
    assert home.catalog.problems() == []
    location = home.models / "Beta"
    size_bytes = sum(path.stat().st_size for path in location.iterdir())
    assert home.catalog.scan()[0] == ModelRef(
        name="Beta", path="models/Beta", location=str(location), size_bytes=size_bytes, source="models"
    )


def test_of_two_models_with_one_name_the_first_folder_s_is_offered(home: Home) -> None:
    make(home.models / "x")
    make(home.own / "x")
    make(home.models / "llmws-guide")
    make(home.bundled / "llmws-guide")
    assert home.paths() == ["models/llmws-guide", "models/x"]
    assert home.catalog.problems() == [Problem(path="var/models/x", reason="models/x has the same name")]


def test_a_broken_model_does_not_hide_a_good_one_of_its_name(home: Home) -> None:
    make(home.models / "x", config__json=None)
    make(home.own / "x")
    make(home.models / "llmws-guide", model__safetensors=b"version https://git-lfs.github.com/spec/v1\n")
    make(home.bundled / "llmws-guide")
    assert [model.location for model in home.catalog.scan()] == [
        str(home.bundled / "llmws-guide"),
        str(home.own / "x"),
    ]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"config__json": None}, "it has no config.json"),
        ({"config__json": b"{"}, "config.json is not valid JSON"),
        ({"config__json": b"[" * 5000}, "config.json is not valid JSON"),
        ({"config__json": b"\xff"}, "config.json is not valid JSON"),
        ({"config__json": b"[]"}, "config.json is not an object"),
        ({"config__json": b" " * (4 * 2**20 + 1)}, "config.json is larger than 4194304 bytes"),
        ({"model__safetensors": None}, "it has no *.safetensors file"),
        (
            {"model__safetensors": None, "a__safetensors": EMPTY, "training_args__bin": b"x"},
            "it has neither model.safetensors nor model.safetensors.index.json",
        ),
        (
            {"adapter_config__json": b"{}"},
            "it is an adapter for another model (adapter_config.json); merge the two first",
        ),
        (
            {"model__safetensors": None, "pytorch_model__bin": b"x"},
            "its weights are pickles, which can run code; convert them to safetensors",
        ),
        (
            {"model__safetensors": None, "config__json": None, "x__Q4__gguf": b"GGUF"},
            "GGUF is not read; put the safetensors folder there",
        ),
        ({"model__safetensors": b""}, "model.safetensors is not a safetensors file (cut short, or a git-lfs pointer)"),
        (
            {"model__safetensors": b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 99\n"},
            "model.safetensors is not a safetensors file (cut short, or a git-lfs pointer)",
        ),
        (
            {"model__safetensors": (3).to_bytes(8, "little") + b"{}"},
            "model.safetensors is cut short",
        ),
        ({"model__safetensors__index__json": b"{}"}, "model.safetensors.index.json is not an index"),
        (
            {"model__safetensors__index__json": b'{"weight_map": {"w": "other.safetensors"}}'},
            "other.safetensors is missing",
        ),
        (
            {"model__safetensors__index__json": b'{"weight_map": {"w": "../x/model.safetensors"}}'},
            "model.safetensors.index.json names '../x/model.safetensors', not a plain file name",
        ),
        (
            {"model__safetensors__index__json": b'{"weight_map": {"w": "config.json"}}'},
            "model.safetensors.index.json names 'config.json', not a plain file name",
        ),
        (
            {"model__safetensors__index__json": b'{"weight_map": {"w": "\\u001b.safetensors"}}'},
            "model.safetensors.index.json names '\\x1b.safetensors', not a plain file name",
        ),
    ],
)
def test_a_broken_folder_is_not_offered(home: Home, files: dict[str, bytes | None], reason: str) -> None:
    make(home.models / "x", **files)
    assert home.problem() == reason


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"auto_map": {"AutoConfig": "configuration.Evil"}}, AUTO_MAP),
        ({"auto_map": None}, AUTO_MAP),
        ({"trust_remote_code": True}, "config.json asks for custom code (trust_remote_code)"),
        ({"custom_pipelines": {}}, "config.json asks for custom code (custom_pipelines)"),
        ({"text_config": {"auto_map": {}}}, AUTO_MAP),
        ({"layers": [[{"custom_generate": "x/y"}]]}, "config.json asks for custom code (custom_generate)"),
        ({"configuration_files": []}, "config.json names other files to read (configuration_files)"),
        (
            {"text_config": {"transformers_weights": "weights.pt"}},
            "config.json names other files to read (transformers_weights)",
        ),
        (
            {"text_config": {"quantization_config": {"quant_method": "gptq\x1b"}}},
            "its weights are quantised (gptq\\x1b), which this version does not read",
        ),
        (
            {"quantization_config": {}},
            "its weights are quantised (by an unnamed method), which this version does not read",
        ),
        ({"attn_implementation": "evil/kernel"}, "config.json asks for custom code (attn_implementation)"),
        ({"attn_implementation": {"": "evil/kernel"}}, "config.json asks for custom code (attn_implementation)"),
        ({"experts_implementation": "evil/kernel"}, "config.json asks for custom code (experts_implementation)"),
        ({"_attn_implementation": "evil/kernel"}, "config.json asks for custom code (_attn_implementation)"),
        (
            {"attribute_map": {"x": "_attn_implementation_internal"}},
            "config.json changes what its keys mean (attribute_map)",
        ),
        (
            {"_attn_implementation_internal": "evil/kernel"},
            "config.json has the private key '_attn_implementation_internal'",
        ),
        ({"__class__": 1}, "config.json has the private key '__class__'"),
        ({"vision_config": {"_x\x1b": 1}}, "config.json has the private key '_x\\x1b'"),
        ({"_name_or_path": {"a": 1}}, "config.json has the private key '_name_or_path'"),
        ({"model_type": None}, "config.json names no model_type"),
        ({"model_type": "../llama"}, "config.json names no model_type"),
        ({"model_type": ["llama"]}, "config.json names no model_type"),
    ],
)
def test_a_configuration_that_could_run_code_or_is_of_quantised_weights_is_not_offered(
    home: Home, extra: dict[str, Any], reason: str
) -> None:
    make(home.models / "x", config=CONFIG | extra)
    assert home.problem() == reason


def test_an_index_in_a_folder_further_down_is_checked_too(home: Home) -> None:
    sub = make(home.models / "x") / "sub"
    sub.mkdir()
    (sub / "x.safetensors.index.json").write_text('{"weight_map": {"w": "../../y/model.safetensors"}}')
    assert home.problem() == "x.safetensors.index.json names '../../y/model.safetensors', not a plain file name"


def test_stock_configurations_are_offered(home: Home) -> None:
    """Keys that transformers itself writes, an index whose shards are there, old pickles beside the safetensors."""
    stock = {
        "_commit_hash": None,
        "_num_labels": 2,
        "attn_implementation": "flash_attention_2",
        "text_config": {"_sliding_window_pattern": 6, "attn_implementation": None},
    }
    index = b'{"metadata": {"total_size": 1}, "weight_map": {"a": "model.safetensors"}}'
    make(
        home.models / "x",
        config=CONFIG | stock,
        model__safetensors__index__json=index,
        pytorch_model__bin=b"x",
        modeling__py=b"raise SystemExit",
    )
    assert home.paths() == ["models/x"]


@pytest.mark.parametrize("name", ["_x", "a b", "x" * 129, "-x", "a\x1b[31m\n"])
def test_a_folder_whose_name_is_no_model_name_is_not_offered(home: Home, name: str) -> None:
    make(home.models / name)
    assert "is not a model name" in home.problem()
    assert home.catalog.problems()[0].path.isprintable()


def test_a_gguf_file_is_told_of(home: Home) -> None:
    home.models.mkdir()
    (home.models / "my model.Q4.GGUF").touch()
    assert home.problem() == "GGUF is not read; put the safetensors folder there"


def test_a_link_is_not_offered(home: Home) -> None:
    make(home.root / "elsewhere")
    home.models.mkdir()
    (home.models / "x").symlink_to(home.root / "elsewhere")
    assert home.problem() == "it is a link; put the folder itself there"


@pytest.mark.parametrize("target", ["/etc/passwd", "../../secret", "..", "../x2/config.json"])
def test_a_folder_with_a_link_that_leads_out_is_not_offered(home: Home, target: str) -> None:
    folder = make(home.models / "x")
    (home.root / "secret").write_text("secret")
    (folder / "sub").mkdir()
    (folder / "sub" / "a\nb").symlink_to(target if target.startswith("/") else f"../{target}")
    assert home.problem() == "a\\nb is a link out of the folder"


def test_a_link_inside_the_folder_is_fine(home: Home) -> None:
    folder = make(home.models / "x")
    (folder / "model.safetensors").rename(folder / "blob")
    (folder / "model.safetensors").symlink_to("blob")
    assert home.paths() == ["models/x"]


def test_what_is_neither_file_nor_folder_is_refused(home: Home) -> None:
    os.mkfifo(make(home.models / "x") / "pipe")
    assert home.problem() == "pipe is neither a file nor a folder"


def test_a_configuration_that_is_a_folder_is_refused(home: Home) -> None:
    (make(home.models / "x", config__json=None) / "config.json").mkdir()
    assert home.problem() == "it has no config.json"


def test_a_scan_says_once_why_a_folder_is_not_offered(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    make(home.models / "x\x1b[31m\n")
    make(home.models / "y", config__json=None)
    for _ in range(3):
        home.catalog.scan()
    odd, broken = [record.getMessage() for record in caplog.records]
    assert odd.startswith("models/x\\x1b[31m\\n is not offered: 'x\\x1b[31m\\n' is not a model name: ")
    assert broken == "models/y is not offered: it has no config.json"
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
    (home.models / "y" / "config.json").write_text("[]")
    home.catalog.scan()
    assert caplog.records[-1].getMessage() == "models/y is not offered: config.json is not an object"


# --- delete ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["models/x", "var/models/x"])
def test_deleting_removes_the_folder_and_nothing_else(home: Home, path: str) -> None:
    make(home.root / path)
    make(home.models / "y")
    make(home.own / "y2")
    before = home.files()
    home.catalog.delete("x")
    assert home.files() == {name for name in before if not name.startswith(path)}
    assert home.paths() == ["models/y", "var/models/y2"]


def test_the_model_that_is_offered_is_deleted_and_the_hidden_one_appears(home: Home) -> None:
    make(home.models / "x")
    make(home.own / "x")
    home.catalog.delete("x")
    assert home.paths() == ["var/models/x"]


def test_the_offered_model_is_deleted_rather_than_a_broken_one_of_its_name(home: Home) -> None:
    make(home.models / "x", config__json=None)
    make(home.own / "x")
    home.catalog.delete("x")
    assert (home.models / "x").exists()
    assert not (home.own / "x").exists()


def test_a_broken_folder_can_be_deleted(home: Home) -> None:
    make(home.models / "x", config=CONFIG | {"auto_map": {}})
    home.catalog.delete("x")
    assert home.files() == {"models"}


def test_what_comes_with_llmws_stays(home: Home) -> None:
    make(home.bundled / "llmws-guide")
    before = home.files()
    with pytest.raises(BadRequestError, match="llmws-guide comes with llmws and cannot be deleted"):
        home.catalog.delete("llmws-guide")
    assert home.files() == before


def test_links_are_removed_but_not_followed(home: Home) -> None:
    """A folder full of links to other people's files: the links go, the files stay."""
    secret = home.root / "secret"
    secret.mkdir()
    (secret / "file").write_text("precious")
    folder = make(home.models / "x")
    (folder / "file").symlink_to(secret / "file")
    (folder / "folder").symlink_to(secret)
    home.catalog.delete("x")
    assert home.files() == {"models", "secret", "secret/file"}


@pytest.mark.parametrize("name", ["linked", "file", "absent"])
def test_only_a_real_folder_can_be_deleted(home: Home, name: str) -> None:
    make(home.root / "elsewhere")
    home.models.mkdir()
    (home.models / "linked").symlink_to(home.root / "elsewhere")
    (home.models / "file").write_text("x")
    before = home.files()
    with pytest.raises(ModelNotFoundError, match=f"there is no model {name}"):
        home.catalog.delete(name)
    assert home.files() == before


def test_models_behind_a_linked_models_folder_are_found_and_deleted(tmp_path: Path) -> None:
    """People put `models` on another disk."""
    make(tmp_path / "disk" / "x")
    (tmp_path / "models").symlink_to(tmp_path / "disk")
    home = Home(tmp_path)
    assert home.paths() == ["models/x"]
    home.catalog.delete("x")
    assert not (tmp_path / "disk" / "x").exists()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_refused_before_any_file_is_touched(home: Home, name: str) -> None:
    make(home.models / "x")
    before = home.files()
    with pytest.raises(BadRequestError):
        home.catalog.delete(name)
    assert home.files() == before


@given(
    st.one_of(
        st.text(max_size=20),
        st.lists(
            st.sampled_from(["..", ".", "models", "var", "x", "/", "\\", "\0", "victim", "~", "%2e", " "]), max_size=8
        ).map("".join),
        st.sampled_from(["..", "../victim", "models/../../victim", "/victim", "x/../../victim"]),
    )
)
def test_no_name_leads_out_of_the_models_folders(home: Home, name: str) -> None:
    """Kills: a delete that joins before it validates, or that follows a link to `victim`."""
    if not home.models.exists():
        make(home.root / "victim")
        home.models.mkdir(parents=True)
        (home.models / "link").symlink_to(home.root / "victim")
        make(home.own / "keep")
    before = home.files() - {"models/x"}
    if name != "keep":
        with pytest.raises((BadRequestError, ModelNotFoundError)):
            home.catalog.delete(name)
    assert home.files() >= before


def test_a_deletion_that_a_kill_interrupted_is_finished_by_the_next_scan(home: Home) -> None:
    make(home.models / ".deleting-abc" / "x")
    assert home.paths() == []
    assert home.files() == {"models"}


def test_a_link_that_looks_like_a_deletion_is_left_alone(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    kept = make(home.root / "kept")
    home.models.mkdir()
    (home.models / ".deleting-x").symlink_to(kept)
    before = home.files()
    assert home.paths() == []
    assert home.files() == before
    assert caplog.records == []


def test_a_folder_that_cannot_be_moved_away_is_an_error(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    make(home.models / "x")
    before = home.files()

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(StorageError, match=r"x cannot be deleted \(Permission denied\)"):
        home.catalog.delete("x")
    assert home.files() == before


def test_a_folder_that_cannot_be_read_is_a_problem_not_a_crash(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    make(home.models / "x")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert home.problem() == "it cannot be read (Permission denied)"


def test_what_resists_removal_stays_hidden_and_is_logged(
    home: Home, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make(home.models / "x")
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    home.catalog.delete("x")
    assert home.paths() == []
    assert "cannot be removed" in caplog.records[0].getMessage()
