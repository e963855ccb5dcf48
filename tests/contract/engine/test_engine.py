"""What every engine promises: the scripted one, the worker without a model, and the worker with the guide model.

`Case` is all that a test knows of the engine it runs on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from llmws.config import LimitsSection, OptimizationSection
from llmws.engine.local import LocalEngine
from llmws.engine.scripted import ScriptedEngine, Step
from llmws.engine.worker import Worker
from llmws.engine_api import (
    Chunk,
    Engine,
    EngineEvent,
    GenerationRequest,
    ModelFailed,
    ModelLoaded,
    ModelProgress,
    ModelRef,
)
from llmws.protocol import ErrorCode
from llmws.protocol.messages import Sampling
from tests.contract.engine.listening import Listener, is_last, whole
from tests.contract.engine.scripted_runner import AlphabetLoader

GUIDE = Path(__file__).parents[3] / "models" / "llmws-guide"
PROMPT = tuple(range(100, 110))


@dataclass
class Case:
    """An engine that runs, and what it can be asked."""

    ear: Listener
    model: ModelRef
    broken: ModelRef

    @property
    def engine(self) -> Engine:
        return self.ear.engine

    def request(self, key: str, **changes) -> GenerationRequest:
        fields = {"prompt_ids": PROMPT, "sampling": Sampling(do_sample=False, seed=1), "max_new_tokens": 12}
        return GenerationRequest(key=key, **(fields | changes))


def ref(name: str, location: Path = Path("/models")) -> ModelRef:
    return ModelRef(
        name=name, path=f"models/{name}", location=str(location / name), size_bytes=2_000_000, source="models"
    )


def scripted() -> Engine:
    letters = [Step(((i, chr(96 + i)),)) for i in range(1, 27)]
    return ScriptedEngine([*letters, Step(((0, ""),), finish="stop")], broken={"bad": "it is bad"}, interval_s=0)


ENGINES: dict[str, Callable[[], Engine]] = {
    "scripted": scripted,
    "worker": lambda: Worker(AlphabetLoader),
    "local": lambda: LocalEngine(OptimizationSection(device="cpu", threads=1), LimitsSection()),
}


@pytest.fixture(params=ENGINES)
def case(request) -> Iterator[Case]:
    engine = ENGINES[request.param]()
    model = ref("llmws-guide", GUIDE.parent) if request.param == "local" else ref("m")
    yield Case(Listener(engine), model, ref("bad"))
    engine.close()


@pytest.fixture
def loaded(case) -> Case:
    assert isinstance(case.ear.load(case.model), ModelLoaded)
    return case


def test_a_load_reports_progress_and_then_the_model(case):
    loaded = case.ear.load(case.model)
    reports = [event for event in case.ear.heard if isinstance(event, ModelProgress)]

    assert loaded.info.ref == case.model
    assert loaded.info.max_running >= 2
    assert case.ear.heard[-1] == loaded
    assert reports[-1].bytes == reports[-1].total_bytes


def test_without_a_model_a_request_says_so(case):
    case.engine.submit(case.request("a"))

    assert case.ear.answer("a")[0].error_code == ErrorCode.NO_MODEL


def test_a_stream_is_contiguous_and_ends_once(loaded):
    loaded.engine.submit(loaded.request("a"))
    (answer,) = loaded.ear.answer("a")
    chunks = loaded.ear.chunks("a")

    assert (answer.index, len(answer.ids), answer.finish) == (0, 12, "length")
    assert answer.text
    assert [is_last(chunk) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


def test_a_stream_that_is_cut_anywhere_goes_on_alike(loaded):
    """Emitted ids are not said again, and the text joins, wherever the chunks were."""
    loaded.engine.submit(loaded.request("whole"))
    (answer,) = loaded.ear.answer("whole")
    chunks = loaded.ear.chunks("whole")
    for cut in range(len(chunks) + 1):
        said = whole([Chunk(key="whole", index=0), *chunks[:cut]])
        loaded.engine.submit(loaded.request(f"rest-{cut}", emitted_ids=said.ids, emitted_text=said.text))
        (rest,) = loaded.ear.answer(f"rest-{cut}")

        assert (rest.index, said.ids + rest.ids) == (len(said.ids), answer.ids)
        assert (said.text + rest.text, rest.finish) == (answer.text, answer.finish)


def test_text_that_was_not_sent_is_sent_first(loaded):
    """The process died between sampling and sending: all ids are there, and half of the text."""
    loaded.engine.submit(loaded.request("whole"))
    (answer,) = loaded.ear.answer("whole")
    half = answer.text[: len(answer.text) // 2]
    loaded.engine.submit(loaded.request("rest", emitted_ids=answer.ids, emitted_text=half))
    (rest,) = loaded.ear.answer("rest")

    assert (rest.index, rest.ids, rest.finish) == (12, (), "length")
    assert half + rest.text == answer.text


def test_several_streams_all_end(loaded):
    keys = [f"s{i}" for i in range(7)]
    for key in keys:
        loaded.engine.submit(loaded.request(key))
    answers = loaded.ear.answer(*keys)

    assert {answer.ids for answer in answers} == {answers[0].ids}
    assert loaded.engine.load_state().running == 0


def test_a_cancelled_stream_falls_silent_and_the_next_one_speaks(loaded):
    loaded.engine.submit(loaded.request("long", max_new_tokens=26))
    loaded.engine.cancel("long")
    loaded.engine.submit(loaded.request("next"))
    loaded.ear.answer("next")
    heard = len(loaded.ear.chunks("long"))
    loaded.engine.submit(loaded.request("later"))
    loaded.ear.answer("later")

    assert len(loaded.ear.chunks("long")) == heard
    assert loaded.ear.engine.load_state().running == 0


def test_an_unknown_key_is_nothing_to_cancel(loaded):
    loaded.engine.cancel("never was")
    loaded.engine.submit(loaded.request("a"))

    assert loaded.ear.answer("a")[0].finish == "length"


def test_a_failed_load_says_what_is_kept(loaded):
    kept = loaded.ear.models()[-1].info
    failed = loaded.ear.load(loaded.broken)
    loaded.engine.submit(loaded.request("a"))

    assert isinstance(failed, ModelFailed)
    assert (failed.name, failed.kept) == ("bad", kept)
    assert failed.message
    assert loaded.ear.answer("a")[0].finish == "length"


def test_a_first_load_that_fails_keeps_nothing(case):
    assert case.ear.load(case.broken).kept is None


def test_what_is_asked_after_a_load_waits_for_it(case):
    case.engine.load(case.model)
    case.engine.submit(case.request("a"))

    assert case.ear.answer("a")[0].finish == "length"


def test_closing_under_way_returns(loaded):
    for key in "abc":
        loaded.engine.submit(loaded.request(key, max_new_tokens=26))
    loaded.engine.close()


def test_everything_that_is_said_can_be_encoded(loaded):
    """So that an engine may live in another process."""
    loaded.engine.submit(loaded.request("a", sampling=Sampling(do_sample=False, seed=1, logprobs=1)))
    loaded.ear.load(loaded.broken)
    loaded.ear.answer("a")
    decoder = msgspec.msgpack.Decoder(list[EngineEvent])

    assert decoder.decode(msgspec.msgpack.encode(loaded.ear.heard)) == loaded.ear.heard
