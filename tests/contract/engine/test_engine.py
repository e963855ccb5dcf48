"""What every engine promises: the scripted one, the worker without a model, and both tiers with tiny real models.

Each runs on its thread, as in the product, and some in a child process too: an engine's values are data. `Case` is all
that a test knows of the engine it runs on.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import msgspec
import pytest

from llmws.engine.mailbox import CAPACITY
from llmws.engine_api import (
    Chunk,
    EngineEvent,
    GenerationRequest,
    ModelFailed,
    ModelLoaded,
    ModelProgress,
    ModelRef,
)
from llmws.protocol import ErrorCode
from llmws.protocol.messages import Sampling
from tests.contract.engine.engines import GREEDY, KINDS, LONG, SEEDED, Case, ref, save_poisoned
from tests.support.engine_process import ProcessEngine
from tests.support.listening import Listener, is_last, whole

PLACES = [*(f"{kind}-thread" for kind in KINDS), "scripted-process", "fast-process"]


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> tuple[ModelRef, ModelRef]:
    folder = tmp_path_factory.mktemp("models")
    return save_poisoned(folder / "tiny"), save_poisoned(folder / "other")


@pytest.fixture(params=PLACES)
def case(request) -> Iterator[Case]:
    name, place = request.param.split("-")
    kind = KINDS[name]
    is_real = name in ("fast", "fallback")
    model, other = request.getfixturevalue("tiny_models") if is_real else (ref("m"), ref("n"))
    engine = kind.make() if place == "thread" else ProcessEngine(kind.make)
    yield Case(Listener(engine), kind, model, other, ref("bad"))
    engine.close()


@pytest.fixture
def loaded(case) -> Case:
    assert isinstance(case.ear.load(case.model), ModelLoaded)
    return case


# --- streams -----------------------------------------------------------------------------------------------------


def test_a_stream_is_contiguous_and_ends_once(loaded):
    loaded.ask("a")
    (answer,) = loaded.ear.answer("a")
    chunks = loaded.ear.chunks("a")

    assert (answer.index, len(answer.ids), answer.finish) == (0, 12, "length")
    assert answer.text
    assert [is_last(chunk) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


def test_streams_side_by_side_are_each_contiguous_and_end_once(loaded):
    keys = [f"s{i}" for i in range(7)]
    for key in keys:
        loaded.ask(key)
    answers = loaded.ear.answer(*keys)

    assert {(answer.ids, answer.text) for answer in answers} == {(answers[0].ids, answers[0].text)}
    assert [sum(is_last(chunk) for chunk in loaded.ear.chunks(key)) for key in keys] == [1] * 7
    assert loaded.engine.load_state().running == 0


def test_a_take_holds_one_chunk_of_a_request(loaded):
    """What came since the last take is merged, also where requests took turns."""
    keys = ("a", "b")
    for key in keys:
        loaded.ask(key, max_new_tokens=LONG)
    loaded.ear.answer(*keys)

    for taken in loaded.ear.takes:
        told = [event.key for event in taken if isinstance(event, Chunk)]
        assert len(told) == len(set(told))


def test_an_engine_that_nobody_listens_to_stops(loaded):
    """So the device never runs ahead of the log; there is no second notice either before a take."""
    loaded.ask("a", max_new_tokens=LONG)
    assert loaded.ear.was_notified()
    loaded.ear.take()
    assert loaded.ear.was_notified()
    assert not loaded.ear.was_notified(0.1)

    assert sum(len(event.ids) for event in loaded.ear.take()) <= CAPACITY
    (answer,) = loaded.ear.answer("a")
    assert len(answer.ids) == LONG


def test_no_news_is_lost(loaded):
    """Each of these short answers is heard because of a notice of its own; `until` waits for nothing else."""
    for number in range(40):
        loaded.ask(f"{number}", max_new_tokens=1)
        assert len(loaded.ear.answer(f"{number}")[0].ids) == 1


def test_an_engine_may_be_asked_from_many_threads(loaded):
    def ask(name: str) -> None:
        for number in range(5):
            loaded.ask(f"{name}{number}", max_new_tokens=3)
            loaded.engine.cancel("never was")

    threads = [threading.Thread(target=ask, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    answers = loaded.ear.answer(*(f"{name}{number}" for name in "abcd" for number in range(5)))
    for thread in threads:
        thread.join()

    assert [len(answer.ids) for answer in answers] == [3] * 20


# --- continuing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_a_stream_that_is_cut_at_any_token_goes_on_alike(loaded, sampling):
    """Emitted ids are not said again; the text goes on from what was sent, which may lag behind the ids."""
    loaded.ask("whole", sampling=sampling)
    (answer,) = loaded.ear.answer("whole")
    sent = {0: ""}
    for chunk in loaded.ear.chunks("whole"):
        sent[chunk.index + len(chunk.ids)] = sent[chunk.index] + chunk.text
    lags = {cut: max(at for at in sent if at <= cut) for cut in range(len(answer.ids) + 1)}
    for cut, sent_at in lags.items():
        loaded.ask(str(cut), sampling=sampling, emitted_ids=answer.ids[:cut], emitted_text=sent[sent_at])
    rests = loaded.ear.answer(*map(str, lags))

    for (cut, sent_at), rest in zip(lags.items(), rests, strict=True):
        assert (rest.index, answer.ids[:cut] + rest.ids) == (cut, answer.ids)
        assert (sent[sent_at] + rest.text, rest.finish) == (answer.text, answer.finish)


def test_text_that_was_not_sent_is_sent_first(loaded):
    """The process died between sampling and sending: all ids are there, and half of the text."""
    loaded.ask("whole")
    (answer,) = loaded.ear.answer("whole")
    half = answer.text[: len(answer.text) // 2]
    loaded.ask("rest", emitted_ids=answer.ids, emitted_text=half)
    (rest,) = loaded.ear.answer("rest")

    assert (rest.index, rest.ids, rest.finish) == (12, (), "length")
    assert half + rest.text == answer.text


def test_the_same_seed_says_the_same_in_any_company(loaded):
    loaded.ask("alone", sampling=SEEDED)
    (alone,) = loaded.ear.answer("alone")
    for key in ("one", "two", "three"):
        loaded.ask(key, sampling=SEEDED)
    answers = loaded.ear.answer("one", "two", "three")

    assert [(each.ids, each.text) for each in answers] == [(alone.ids, alone.text)] * 3


# --- faults --------------------------------------------------------------------------------------------------------


def test_one_requests_error_leaves_the_others_unchanged(loaded):
    loaded.ask("alone")
    (alone,) = loaded.ear.answer("alone")
    loaded.ask("well-1")
    loaded.ask("sick", **loaded.kind.sick)
    loaded.ask("well-2")
    one, sick, two = loaded.ear.answer("well-1", "sick", "well-2")

    assert (sick.error_code, sick.finish) == (ErrorCode.MODEL_FAILED, None)
    assert sick.error_message
    assert [(each.ids, each.text, each.finish) for each in (one, two)] == [(alone.ids, alone.text, "length")] * 2


def test_without_a_model_a_request_says_so(case):
    case.ask("a")

    assert case.ear.answer("a")[0].error_code == ErrorCode.NO_MODEL


def test_after_a_first_load_that_fails_there_is_no_model(case):
    failed = case.ear.load(case.broken)
    case.ask("a")

    assert isinstance(failed, ModelFailed)
    assert failed.kept is None
    assert case.ear.answer("a")[0].error_code == ErrorCode.NO_MODEL


# --- cancelling ----------------------------------------------------------------------------------------------------


def test_a_cancelled_stream_falls_silent_within_one_step(loaded):
    """What is heard after it was in the mailbox already, but for the step under way."""
    loaded.ask("long", max_new_tokens=LONG)
    loaded.ear.until(lambda: len(loaded.ear.ids("long")) >= 3)
    before = len(loaded.ear.ids("long"))
    loaded.engine.cancel("long")
    loaded.ask("next")
    loaded.ear.answer("next")

    assert len(loaded.ear.ids("long")) - before <= CAPACITY + 1
    assert not loaded.ear.ended("long")
    assert loaded.engine.load_state().running == 0


def test_a_request_that_waits_can_be_cancelled(loaded):
    """Behind more than any of these engines runs at once."""
    running = [f"r{number}" for number in range(40)]
    for key in running:
        loaded.ask(key)
    loaded.ask("waiting")
    loaded.engine.cancel("waiting")
    loaded.ask("next")
    loaded.ear.answer(*running, "next")

    assert loaded.ear.chunks("waiting") == []
    assert loaded.engine.load_state().queued == 0


def test_there_is_nothing_to_cancel_in_what_never_was_or_has_ended(loaded):
    loaded.engine.cancel("never was")
    loaded.ask("a")
    loaded.ear.answer("a")
    loaded.engine.cancel("a")
    loaded.engine.cancel("a")
    loaded.ask("b")

    assert loaded.ear.answer("b")[0].finish == "length"
    assert len([chunk for chunk in loaded.ear.chunks("a") if is_last(chunk)]) == 1


# --- models --------------------------------------------------------------------------------------------------------


def test_a_load_reports_progress_and_then_the_model(case):
    loaded = case.ear.load(case.model)
    reports = [event for event in case.ear.heard if isinstance(event, ModelProgress)]

    assert loaded.info.ref == case.model
    assert loaded.info.max_running >= 2
    assert case.ear.heard[-1] == loaded
    assert reports[-1].bytes == reports[-1].total_bytes


def test_a_failed_load_says_what_is_kept_and_that_goes_on(loaded):
    kept = loaded.ear.models()[-1].info
    loaded.ask("before")
    (before,) = loaded.ear.answer("before")
    failed = loaded.ear.load(loaded.broken)
    loaded.ask("after")
    (after,) = loaded.ear.answer("after")

    assert isinstance(failed, ModelFailed)
    assert (failed.name, failed.kept) == ("bad", kept)
    assert failed.message
    assert (after.ids, after.text, after.finish) == (before.ids, before.text, "length")


def test_a_model_runs_on_the_tier_that_suits_it(loaded):
    assert loaded.ear.models()[-1].info.tier == loaded.kind.tier


def test_what_comes_after_a_load_waits_for_it(loaded):
    """What came before it may still be on."""
    loaded.ask("old")
    loaded.engine.load(loaded.other)
    loaded.ask("new")
    loaded.ear.answer("old", "new")
    second_load = loaded.ear.heard.index(loaded.ear.models()[-1])

    assert loaded.ear.models()[-1].info.ref == loaded.other
    assert loaded.ear.heard.index(loaded.ear.chunks("new")[0]) > second_load


def test_requests_run_on_the_model_that_they_name(loaded):
    """Loaded again where it had to make room; the last one loaded where they name none."""
    loaded.ask("alone")
    (alone,) = loaded.ear.answer("alone")
    loaded.ear.load(loaded.other)
    for key in ("one", "three"):
        loaded.ask(key, model=loaded.model)
    for key, model in (("two", loaded.other), ("four", None)):
        loaded.ask(key, model=model)
    answers = loaded.ear.answer("one", "two", "three", "four")

    assert [answer.finish for answer in answers] == ["length"] * 4
    assert (answers[0].ids, answers[0].text) == (answers[2].ids, answers[2].text) == (alone.ids, alone.text)
    assert (answers[1].ids, answers[1].text) == (answers[3].ids, answers[3].text)


def test_a_load_that_has_not_begun_can_be_taken_back(loaded):
    """Behind more streams than run at once. A request that names the model still loads it."""
    running = [f"r{number}" for number in range(40)]
    for key in running:
        loaded.ask(key)
    loaded.engine.load(loaded.other)
    loaded.ask("behind", model=loaded.other)
    loaded.engine.load(loaded.broken)
    loaded.engine.withdraw(loaded.broken.name)
    loaded.engine.withdraw(loaded.other.name)
    loaded.engine.withdraw("never was")
    loaded.ask("unnamed")
    loaded.engine.load(loaded.model)
    loaded.ear.answer(*running, "behind", "unnamed")
    loaded.ear.until(lambda: loaded.ear.models()[-1].info.ref == loaded.model)

    assert not any(isinstance(event, ModelFailed) for event in loaded.ear.heard)
    assert [event.info.ref for event in loaded.ear.models()] == [loaded.model, loaded.other, loaded.model]


def test_what_is_asked_after_a_load_waits_for_it(case):
    case.engine.load(case.model)
    case.ask("a")

    assert case.ear.answer("a")[0].finish == "length"


# --- closing -------------------------------------------------------------------------------------------------------


def test_closing_while_streams_run_just_ends_them(loaded):
    """What had come can still be taken, and nothing that is asked afterwards is answered or does harm."""
    for key in "abc":
        loaded.ask(key, max_new_tokens=LONG)
    loaded.ear.until(lambda: bool(loaded.ear.chunks("a")))
    loaded.engine.close()
    loaded.ear.take()
    heard = len(loaded.ear.heard)
    loaded.engine.cancel("a")
    loaded.ask("late")
    loaded.engine.load(loaded.model)

    for key in "abc":
        assert not loaded.ear.chunks(key) or whole(loaded.ear.chunks(key)).index == 0
    assert loaded.ear.take() == []
    assert len(loaded.ear.heard) == heard


def test_closing_during_a_load_returns(case):
    case.engine.load(case.model)
    case.engine.close()
    case.ear.take()

    assert len(case.ear.models()) <= 1


def test_closing_before_anything_was_asked_returns(case):
    case.engine.close()
    case.engine.close()

    assert case.ear.take() == []


# --- data ----------------------------------------------------------------------------------------------------------


def test_everything_that_is_said_and_asked_can_be_encoded(loaded):
    """So that an engine may live in another process."""
    asked = loaded.request(
        "a", sampling=Sampling(do_sample=False, seed=1, logprobs=1, stop=["\n"], logit_bias={"5": 1})
    )
    loaded.engine.submit(asked)
    loaded.ask("sick", **loaded.kind.sick)
    loaded.ear.load(loaded.broken)
    loaded.ear.answer("a", "sick")

    assert _there_and_back(loaded.ear.heard, list[EngineEvent]) == loaded.ear.heard
    assert _there_and_back(asked, GenerationRequest) == asked
    assert _there_and_back(loaded.model, ModelRef) == loaded.model


def _there_and_back(value, kind):
    return msgspec.msgpack.Decoder(kind).decode(msgspec.msgpack.encode(value))
