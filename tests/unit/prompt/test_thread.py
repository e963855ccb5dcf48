"""The renderer's thread: every job answered once and in order, whatever happens."""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from llmws.engine_api import ModelRef, PromptEvent, PromptFailed, PromptJob, PromptReady, Turn
from llmws.prompt import ThreadRenderer, model_text
from llmws.protocol import ErrorCode
from tests.support import model_folders as folders

WAIT_S = 10.0


class Renderer:
    """A started renderer whose answers can be waited for."""

    def __init__(self, *, clock: Callable[[], datetime] = datetime.now, max_jobs: int = 100) -> None:
        self.inner = ThreadRenderer(clock=clock, max_jobs=max_jobs)
        self.events: queue.Queue[PromptEvent] = queue.Queue()
        self.inner.start(self.events.put)

    def ask(self, model: ModelRef, key: str = "k") -> None:
        self.inner.render(job(model, key))

    def answer(self) -> PromptEvent:
        return self.events.get(timeout=WAIT_S)


def job(model: ModelRef, key: str = "k") -> PromptJob:
    return PromptJob(key=key, model=model, turns=(Turn(role="user", content="hi"),), max_context=100, reserve=1)


@pytest.fixture
def renderer() -> Iterator[Renderer]:
    renderer = Renderer()
    yield renderer
    renderer.inner.close()


@pytest.fixture
def model(tmp_path: Path) -> ModelRef:
    return folders.write_model(tmp_path / "m", folders.byte_level())


def ids(event: PromptEvent) -> int:
    assert isinstance(event, PromptReady), event
    return len(event.ids)


def test_jobs_are_answered_once_each_in_order(renderer: Renderer, model: ModelRef) -> None:
    for n in range(20):
        renderer.ask(model, str(n))
    assert [renderer.answer().key for _ in range(20)] == [str(n) for n in range(20)]
    assert renderer.events.empty()


def test_a_model_without_a_tokenizer_fails_its_jobs_only(renderer: Renderer, model: ModelRef, tmp_path: Path) -> None:
    gone = ModelRef(name="x", path="models/x", location=str(tmp_path / "x"), size_bytes=0, source="models")
    renderer.ask(gone)
    renderer.ask(model)
    failed = renderer.answer()
    assert isinstance(failed, PromptFailed)
    assert (failed.code, "tokenizer.json" in failed.message) == (ErrorCode.MODEL_FAILED, True)
    assert ids(renderer.answer()) > 0


def test_an_unforeseen_fault_fails_its_job_only(model: ModelRef, caplog: pytest.LogCaptureFixture) -> None:
    """The tokenizers library panics with something that is not an Exception."""

    class Panic(BaseException):
        pass

    def panic() -> datetime:
        raise Panic("hi")

    Path(model.location, "chat_template.jinja").write_text("{{ strftime_now('%Y') }}")
    renderer = Renderer(clock=panic)
    renderer.ask(model)
    failed = renderer.answer()
    Path(model.location, "chat_template.jinja").write_text("fine again")
    renderer.ask(model)
    answer = renderer.answer()
    renderer.inner.close()
    message = "the model's tokenizer failed on this prompt"
    assert failed == PromptFailed(key="k", code=ErrorCode.MODEL_FAILED, message=message)
    assert ids(answer) > 0
    [line] = [record.getMessage() for record in caplog.records]
    assert re.fullmatch(
        rf"rendering a prompt for models/m failed in an unforeseen way: Panic in panic, {re.escape(__file__)}:\d+", line
    )


def test_a_replaced_model_is_read_again(renderer: Renderer, model: ModelRef) -> None:
    renderer.ask(model)
    assert ids(renderer.answer()) == 2
    Path(model.location, "chat_template.jinja").write_text("one two three {{ messages[0].content }}")
    renderer.ask(model)
    assert ids(renderer.answer()) > 2


def test_the_four_models_used_last_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    load = model_text.load

    def counted(folder: Path, *, clock: Callable[[], datetime]) -> model_text.ModelText:
        loads.append(folder.name)
        return load(folder, clock=clock)

    monkeypatch.setattr(model_text, "load", counted)
    models = {name: folders.write_model(tmp_path / name, folders.byte_level()) for name in "abcde"}
    renderer = Renderer()
    for name in "abcd" + "a" + "e" + "acde" + "b":
        renderer.ask(models[name])
        assert ids(renderer.answer()) == 2
    renderer.inner.close()
    assert "".join(loads) == "abcde" + "b"


def test_more_jobs_than_may_wait_are_refused_at_once(model: ModelRef) -> None:
    entered, leave = threading.Event(), threading.Event()
    events: list[PromptEvent] = []

    def deliver(event: PromptEvent) -> None:
        events.append(event)
        if event.key == "running":
            entered.set()
            leave.wait(WAIT_S)

    renderer = ThreadRenderer(max_jobs=1)
    renderer.start(deliver)
    renderer.render(job(model, "running"))
    assert entered.wait(WAIT_S)
    renderer.render(job(model, "waiting"))
    renderer.render(job(model, "refused"))
    refused = PromptFailed(key="refused", code=ErrorCode.QUEUE_FULL, message="too many prompts are waiting")
    assert events[1:] == [refused]
    leave.set()
    renderer.close()


def test_close_waits_for_the_running_job_and_answers_no_other(model: ModelRef) -> None:
    entered = threading.Event()
    events: list[str] = []
    renderer = ThreadRenderer()

    def deliver(event: PromptEvent) -> None:
        events.append(event.key)
        entered.set()

    renderer.start(deliver)
    renderer.render(job(model, "first"))
    assert entered.wait(WAIT_S)
    renderer.close()
    renderer.render(job(model, "late"))
    assert events == ["first"]
    assert not [thread for thread in threading.enumerate() if thread.name == "llmws-prompt"]
