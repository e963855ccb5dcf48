"""The scripted engine, moved by hand, plays the golden transcripts' model."""

import pytest

from llmws.engine.scripted import HELLO, ScriptedEngine, Step, model_info
from llmws.engine_api import (
    Chunk,
    GenerationRequest,
    ModelFailed,
    ModelLoaded,
    ModelProgress,
    ModelRef,
    ModelUnloaded,
)
from llmws.protocol import ErrorCode
from llmws.protocol.messages import Sampling

MODEL = ModelRef(name="m", path="models/m", location="/models/m", size_bytes=7, source="models")


def request(key="a", **changes):
    fields = {"prompt_ids": (9,), "sampling": Sampling(), "max_new_tokens": 8}
    return GenerationRequest(key=key, **(fields | changes))


@pytest.fixture
def engine():
    engine = ScriptedEngine()
    engine.start(lambda: None)
    engine.load(MODEL)
    engine.take()
    return engine


def run(engine):
    chunks = []
    while engine.step():
        chunks += engine.take()
    return chunks


def test_hello_in_two_steps(engine):
    engine.submit(request())

    assert engine.step()
    assert engine.take() == [Chunk(key="a", index=0, ids=(1,), text="He")]
    assert engine.step()
    assert engine.take() == [Chunk(key="a", index=1, ids=(2, 3, 0), text="llo", finish="stop")]
    assert not engine.step()
    assert engine.keys == []


@pytest.mark.parametrize(
    ("emitted_ids", "emitted_text", "expected"),
    [
        ((), "", ["He", "llo"]),
        ((1,), "He", ["llo"]),
        ((1, 2), "He", ["llo"]),
        ((1, 2, 3), "Hello", [""]),
        ((1, 2, 3, 0), "Hello", [""]),
    ],
)
def test_a_cut_anywhere_says_the_rest(engine, emitted_ids, emitted_text, expected):
    engine.submit(request(emitted_ids=emitted_ids, emitted_text=emitted_text))

    chunks = run(engine)

    assert [chunk.text for chunk in chunks] == expected
    assert emitted_ids + sum((chunk.ids for chunk in chunks), ()) == (1, 2, 3, 0)
    assert (chunks[0].index, chunks[-1].finish) == (len(emitted_ids), "stop")


def test_ids_that_the_script_never_said_fail(engine):
    engine.submit(request(emitted_ids=(7,), emitted_text="?"))

    assert [chunk.error_code for chunk in run(engine)] == [ErrorCode.MODEL_FAILED]


def test_length_cuts_a_step(engine):
    engine.submit(request(max_new_tokens=2))

    assert run(engine)[-1] == Chunk(key="a", index=1, ids=(2,), text="l", finish="length")


def test_a_script_that_ends_just_at_the_length_keeps_its_own_end(engine):
    engine.submit(request(max_new_tokens=4))

    assert run(engine)[-1].finish == "stop"


def test_cancel_ends_in_silence(engine):
    engine.submit(request())
    engine.step()
    engine.take()
    engine.cancel("a")

    assert not engine.step()
    assert engine.take() == []


def test_more_than_the_models_limit_wait_in_line():
    engine = ScriptedEngine(models={"m": model_info(MODEL, max_running=1)})
    engine.start(lambda: None)
    engine.load(MODEL)
    engine.submit(request("a"))
    engine.submit(request("b"))
    state = engine.load_state()

    assert (state.running, state.queued, engine.keys) == (1, 1, ["a", "b"])
    engine.take()
    assert [chunk.key for chunk in run(engine)] == ["a", "a", "b", "b"]


def test_each_request_may_have_its_own_script():
    engine = ScriptedEngine(lambda r: [Step(((5, r.key),)), Step(error=ErrorCode.MODEL_OOM)])
    engine.start(lambda: None)
    engine.load(MODEL)
    engine.take()
    engine.submit(request("b"))

    assert [(chunk.text, chunk.error_code) for chunk in run(engine)] == [("b", None), ("", ErrorCode.MODEL_OOM)]


def test_loads_are_told_in_order():
    engine = ScriptedEngine(broken={"bad": "no weights"})
    engine.start(lambda: None)
    engine.load(MODEL)
    bad = ModelRef(name="bad", path="models/bad", location="/models/bad", size_bytes=1, source="models")
    engine.load(bad)
    info = model_info(MODEL)

    assert engine.take() == [
        ModelProgress(name="m", bytes=7, total_bytes=7),
        ModelLoaded(info=info),
        ModelFailed(name="bad", code=ErrorCode.MODEL_FAILED, message="no weights", kept=info),
    ]


def test_a_call_for_each_time_there_is_news():
    calls = []
    engine = ScriptedEngine(HELLO)
    engine.start(lambda: calls.append(1))
    engine.load(MODEL)
    engine.submit(request())
    engine.step()
    assert len(calls) == 1

    engine.take()
    engine.step()
    assert len(calls) == 2


# --- models side by side ---------------------------------------------------------------------------------------------


def ref(name):
    return ModelRef(name=name, path=f"models/{name}", location=f"/models/{name}", size_bytes=7, source="models")


def told(engine):
    """The models that came, and with a minus those that went."""
    events = [event for event in engine.take() if isinstance(event, ModelLoaded | ModelUnloaded)]
    return [event.info.ref.name if isinstance(event, ModelLoaded) else f"-{event.name}" for event in events]


def housing(max_resident):
    engine = ScriptedEngine(max_resident=max_resident, broken={"bad": "no weights"})
    engine.start(lambda: None)
    return engine


def test_models_stay_while_they_fit_and_the_one_used_longest_ago_makes_room():
    engine = housing(2)
    for name in "abac":
        engine.load(ref(name))
    assert told(engine) == ["a", "b", "a", "-b", "c"]
    engine.submit(request(model=ref("a")))
    run(engine)
    engine.load(ref("d"))
    assert (told(engine), engine.resident) == (["-c", "d"], {"a", "d"})


def test_a_load_that_finds_no_idle_model_waits_and_what_comes_after_it_too():
    engine = housing(1)
    engine.load(ref("a"))
    engine.submit(request("one"))
    engine.load(ref("b"))
    engine.submit(request("two", model=ref("a")))
    assert (told(engine), engine.wanted, engine.load_state().running) == (["a"], {"b"}, 1)
    while engine.step():
        pass
    assert told(engine) == ["-a", "b", "-b", "a"]


def test_a_request_for_a_model_that_made_room_has_it_loaded_again():
    engine = housing(2)
    engine.load(ref("a"))
    assert engine.unload("a")
    assert not engine.unload("a")
    engine.submit(request(model=ref("a")))
    assert not engine.unload("a"), "it is busy"
    assert told(engine) == ["a", "-a", "a"]
    assert run(engine)[-1].finish == "stop"


def test_a_request_whose_model_cannot_be_loaded_ends_and_the_others_go_on():
    engine = housing(2)
    engine.load(ref("a"))
    engine.take()
    engine.submit(request("one", model=ref("bad")))
    engine.submit(request("two"))
    assert engine.take() == [
        ModelFailed(name="bad", code=ErrorCode.MODEL_FAILED, message="no weights", kept=model_info(ref("a"))),
        Chunk(key="one", index=0, error_code=ErrorCode.MODEL_FAILED, error_message="no weights"),
    ]
    assert run(engine)[-1].finish == "stop"
