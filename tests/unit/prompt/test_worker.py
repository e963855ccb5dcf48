"""What the helper process does with a job: every one answered, whatever the model's files do."""

from __future__ import annotations

import re
from datetime import datetime
from functools import partial
from pathlib import Path

import pytest

from llmws.engine_api import ModelRef, PromptFailed, PromptJob, PromptReady, Turn
from llmws.prompt import model_text
from llmws.prompt.model_text import ModelText
from llmws.prompt.worker import Models, answer
from llmws.protocol import ErrorCode
from tests.support import model_folders as folders


def job(model: ModelRef, key: str = "k") -> PromptJob:
    return PromptJob(key=key, model=model, turns=(Turn(role="user", content="hi"),), max_context=100, reserve=1)


@pytest.fixture
def model(tmp_path: Path) -> ModelRef:
    return folders.write_model(tmp_path / "m", folders.byte_level())


class CountedLoads:
    """A `load` that keeps the names of what it loaded."""

    def __init__(self) -> None:
        self.names = ""

    def __call__(self, folder: Path) -> ModelText:
        self.names += folder.name
        return model_text.load(folder)


def test_a_model_without_a_tokenizer_fails_its_jobs_with_the_name_of_the_file(tmp_path: Path) -> None:
    gone = ModelRef(name="x", path="models/x", location=str(tmp_path / "x"), size_bytes=0, source="models")
    failed = answer(job(gone), Models())
    assert failed.event == PromptFailed(
        key="k",
        code=ErrorCode.MODEL_FAILED,
        message="the model's tokenizer.json cannot be used: No such file or directory",
    )
    assert failed.fault == ""


class Panic(BaseException):
    """What the tokenizers library panics with is not an Exception either."""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (Panic("hi"), "the model's tokenizer failed on this prompt"),
        (MemoryError("hi"), "the model's tokenizer took too much memory"),
    ],
)
def test_an_unforeseen_fault_is_told_by_its_place_and_quotes_nothing(
    model: ModelRef, error: BaseException, message: str
) -> None:
    def load(folder: Path) -> ModelText:
        raise error

    failed = answer(job(model), Models(load))
    assert failed.event == PromptFailed(key="k", code=ErrorCode.MODEL_FAILED, message=message)
    assert re.fullmatch(rf"{type(error).__name__} in load, {re.escape(__file__)}:\d+", failed.fault)


def test_a_replaced_model_is_read_again(model: ModelRef) -> None:
    models = Models()
    before = answer(job(model), models).event
    Path(model.location, "chat_template.jinja").write_text("one two three {{ messages[0].content }}")
    after = answer(job(model), models).event
    assert isinstance(before, PromptReady)
    assert isinstance(after, PromptReady)
    assert (len(before.ids), len(after.ids) > 2) == (2, True)


def test_the_template_is_told_the_time_of_the_clock(model: ModelRef) -> None:
    Path(model.location, "chat_template.jinja").write_text("{{ strftime_now('%Y') }}")
    models = Models(partial(model_text.load, clock=lambda: datetime(1984, 1, 1)))  # noqa: DTZ001
    event = answer(job(model), models).event
    assert isinstance(event, PromptReady)
    assert models.get(Path(model.location)).tokenizer.decode(event.ids) == "1984"


def test_the_four_models_used_last_are_kept(tmp_path: Path) -> None:
    loads = CountedLoads()
    models = Models(loads)
    for name in "abcde":
        folders.write_model(tmp_path / name, folders.byte_level())
    for name in "abcd" + "a" + "e" + "acde" + "b":
        models.get(tmp_path / name)
    assert loads.names == "abcde" + "b"


def test_what_is_kept_is_bounded_by_the_size_of_the_files(tmp_path: Path) -> None:
    """A tokenizer takes up to twelve times its file in memory."""
    for name in "abc":
        folders.write_model(tmp_path / name, folders.byte_level())
    size = sum(size for _, _, size in model_text.fingerprint(tmp_path / "a"))
    loads = CountedLoads()
    models = Models(loads, kept_bytes=2 * size)
    for name in "ab" + "ab" + "c" + "b" + "a":
        models.get(tmp_path / name)
    assert loads.names == "ab" + "c" + "a"
    loads.names, models = "", Models(loads, kept_bytes=0)
    for name in "aab":
        models.get(tmp_path / name)
    assert loads.names == "ab"
