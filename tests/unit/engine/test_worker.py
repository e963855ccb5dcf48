"""The thread that owns the device, with a runner that says the alphabet and breaks on request."""

import itertools
import threading

import pytest

from llmws.engine.runner import DeviceLostError
from llmws.engine.worker import Worker
from llmws.engine_api import GenerationRequest, ModelFailed, ModelLoaded, ModelRef
from llmws.errors import ModelInvalidError, ModelOutOfMemoryError
from llmws.protocol import ErrorCode
from llmws.protocol.messages import Sampling
from tests.contract.engine.listening import TIMEOUT_S, Listener
from tests.contract.engine.scripted_runner import ALPHABET, AlphabetLoader


def ref(name):
    return ModelRef(name=name, path=f"models/{name}", location=f"/models/{name}", size_bytes=100, source="models")


def request(key, **changes):
    fields = {"prompt_ids": (9,), "sampling": Sampling(), "max_new_tokens": 30}
    return GenerationRequest(key=key, **(fields | changes))


@pytest.fixture
def loader():
    return AlphabetLoader()


@pytest.fixture
def ear(loader):
    worker = Worker(lambda: loader)
    ear = Listener(worker)
    yield ear
    worker.close()


@pytest.fixture
def runner(ear, loader):
    assert isinstance(ear.load(ref("m")), ModelLoaded)
    return loader.runners[-1]


# --- one request's error ---------------------------------------------------------------------------------------------


def test_a_streams_error_is_its_own(ear, runner):
    runner.faults["sick"] = ModelInvalidError("nothing usable")
    ear.engine.submit(request("sick"))
    ear.engine.submit(request("well"))

    sick, well = ear.answer("sick", "well")

    assert (sick.error_code, sick.error_message, sick.ids) == (ErrorCode.MODEL_FAILED, "nothing usable", ())
    assert (well.text, well.finish) == (ALPHABET, "stop")
    assert runner.streams == {}


def test_out_of_memory_says_so(ear, runner):
    runner.faults["big"] = ModelOutOfMemoryError("there is not enough memory")
    ear.engine.submit(request("big"))

    assert ear.answer("big")[0].error_code == ErrorCode.MODEL_OOM


def test_a_fault_of_the_tokenizer_is_the_requests_own(ear, runner):
    """Id 99 cannot be decoded; the message tells nothing internal."""
    ear.engine.submit(request("sick", emitted_ids=(99,), emitted_text="?"))
    ear.engine.submit(request("well"))

    sick, well = ear.answer("sick", "well")

    assert (sick.error_code, sick.error_message) == (ErrorCode.MODEL_FAILED, "the model failed on this request")
    assert well.finish == "stop"


def test_a_runner_that_breaks_ends_its_streams_and_not_the_thread(ear, runner):
    runner.broken = RuntimeError("a bug")
    ear.engine.submit(request("a"))
    assert ear.answer("a")[0].error_code == ErrorCode.MODEL_FAILED

    ear.engine.submit(request("b"))
    assert ear.answer("b")[0].finish == "stop"


def test_a_request_that_the_model_cannot_serve_is_refused(ear, runner):
    ear.engine.submit(request("long", max_new_tokens=64))

    assert ear.answer("long")[0].error_code == ErrorCode.BAD_REQUEST
    assert runner.steps == []


def test_a_lost_device_ends_the_thread_and_no_stream(loader):
    """Streams without an end are what the next process continues."""
    fatal, errors = threading.Event(), []
    worker = Worker(lambda: loader, on_fatal=lambda error: (errors.append(error), fatal.set()))
    ear = Listener(worker)
    ear.load(ref("m"))
    loader.runners[0].broken = DeviceLostError("an illegal address")
    worker.submit(request("a"))

    assert fatal.wait(TIMEOUT_S)
    worker.close()
    assert [str(error) for error in errors] == ["an illegal address"]
    assert worker.take() == []


def test_a_bug_of_the_workers_own_does_not_go_unseen(loader):
    fatal = threading.Event()
    worker = Worker(lambda: loader, on_fatal=lambda error: fatal.set())
    ear = Listener(worker)
    ear.load(ref("m"))
    loader.runners[0].free = None
    loader.runners[0].faults["a"] = ModelInvalidError("ends the stream, which is then freed")
    worker.submit(request("a"))

    assert fatal.wait(TIMEOUT_S)
    worker.close()


# --- order -----------------------------------------------------------------------------------------------------------


def test_running_streams_take_turns_and_the_rest_waits(ear, runner):
    """The model runs two at once; the third starts when one has ended, and nothing overtakes."""
    for key, count in (("a", 3), ("b", 5), ("c", 2)):
        ear.engine.submit(request(key, max_new_tokens=count))
    ear.answer("a", "b", "c")

    together = [step for step in runner.steps if len(step) == 2]
    assert max(len(step) for step in runner.steps) == 2
    assert not any("c" in step and "a" in step for step in together)


def test_a_request_waits_for_the_memory_of_its_context(ear, runner):
    runner.room = 1
    ear.engine.submit(request("a", max_new_tokens=3))
    ear.engine.submit(request("b", max_new_tokens=3))
    ear.answer("a", "b")

    assert max(len(step) for step in runner.steps) == 1


def test_a_load_waits_for_what_came_before_and_holds_what_came_after(ear, runner, loader):
    ear.engine.submit(request("old"))
    ear.engine.load(ref("n"))
    ear.engine.submit(request("new", max_new_tokens=2))
    ear.answer("old", "new")

    assert {key for step in runner.steps for key in step} == {"old"}
    assert {key for step in loader.runners[1].steps for key in step} == {"new"}


def test_what_came_before_a_load_is_told_before_it(loader):
    """A request that fails at once does not wait for the model behind it, nor does the model before it."""
    entered, leave, reading = threading.Event(), threading.Event(), threading.Event()

    class Slow(AlphabetLoader):
        def load(self, model, *, progress, reclaimable_bytes):
            if model.name == "first":
                entered.set()
                leave.wait(TIMEOUT_S)
            if model.name == "second":
                reading.wait(TIMEOUT_S)
            return super().load(model, progress=progress, reclaimable_bytes=reclaimable_bytes)

    worker = Worker(Slow)
    ear = Listener(worker)
    worker.load(ref("first"))
    assert entered.wait(TIMEOUT_S)
    worker.submit(request("long", max_new_tokens=64))
    worker.load(ref("second"))
    leave.set()
    ear.until(lambda: ear.ended("long"))
    told = [event.info.ref.name for event in ear.models()]
    reading.set()
    ear.until(lambda: len(ear.models()) == 2)
    worker.close()

    assert told == ["first"]
    order = [type(event).__name__ for event in ear.heard]
    assert order == ["ModelProgress", "ModelLoaded", "Chunk", "ModelProgress", "ModelLoaded"]


def test_a_cancelled_request_leaves_the_line(ear, runner):
    runner.room = 1
    for key in ("a", "b", "c"):
        ear.engine.submit(request(key, max_new_tokens=20))
    ear.engine.cancel("b")
    ear.answer("a", "c")

    assert ear.chunks("b") == []
    assert not any("b" in step for step in runner.steps)


def test_a_stream_that_was_complete_never_reaches_the_runner(ear, runner):
    ear.engine.submit(request("a", emitted_ids=(1, 2, 0), emitted_text="a"))
    (end,) = ear.answer("a")

    assert (end.index, end.ids, end.text, end.finish) == (3, (), "b", "stop")
    assert runner.steps == []


def test_closing_while_streams_run_just_ends_them(loader):
    worker = Worker(lambda: loader)
    ear = Listener(worker)
    ear.load(ref("m"))
    worker.submit(request("a"))
    ear.until(lambda: bool(ear.chunks("a")))
    worker.close()

    assert loader.runners[0].closed


def test_closing_while_a_model_is_read_stops_the_reading():
    """At the next report of progress: this model would never end."""

    class Endless(AlphabetLoader):
        def load(self, model, *, progress, reclaimable_bytes):
            for read in itertools.count():
                progress(read, 10**9)

    worker = Worker(Endless)
    ear = Listener(worker)
    worker.load(ref("m"))
    ear.until(lambda: bool(ear.heard))
    worker.close()

    assert ear.models() == []


# --- models ----------------------------------------------------------------------------------------------------------


def test_both_models_are_there_until_the_new_one_is_ready(ear, runner, loader):
    """The new one is told what the old one gives back."""
    assert isinstance(ear.load(ref("n")), ModelLoaded)

    assert loader.reclaimable == [0, runner.held_bytes]
    assert runner.closed


def test_the_old_model_goes_first_when_both_do_not_fit(ear, runner, loader):
    loader.crowded = True
    ear.load(ref("n"))

    assert loader.reclaimable == [0, 0]
    assert runner.closed


def test_a_failed_load_keeps_the_old_model(ear, runner):
    failed = ear.load(ref("bad"))

    assert failed == ModelFailed(name="bad", code=ErrorCode.MODEL_FAILED, message="it is bad", kept=runner.info)
    assert not runner.closed


def test_no_model_makes_room_for_one_that_never_fits(ear, runner, loader):
    loader.crowded = True
    loader.hopeless.add("huge")
    failed = ear.load(ref("huge"))

    assert (failed.message, failed.kept) == ("it never fits", runner.info)
    assert not runner.closed


def test_a_model_that_made_room_comes_back_after_a_failed_load(ear, runner, loader):
    loader.crowded = True
    failed = ear.load(ref("bad"))
    ear.engine.submit(request("a"))

    assert failed.kept == runner.info
    assert [runner.closed for runner in loader.runners] == [True, False]
    assert ear.answer("a")[0].finish == "stop"


def test_a_model_that_does_not_come_back_is_not_claimed(ear, runner, loader):
    loader.crowded = True
    loader.broken.add("m")
    failed = ear.load(ref("bad"))
    ear.engine.submit(request("a"))

    assert failed.kept is None
    assert ear.answer("a")[0].error_code == ErrorCode.NO_MODEL


def test_what_a_loader_raises_by_accident_stays_in_the_log(ear, caplog):
    failed = ear.load(ref("strange"))

    assert failed.message == "strange cannot be loaded; the server's log says why"
    assert "/secret/path" in caplog.text


def test_a_loader_that_cannot_be_made_fails_the_load(ear):
    """As when torch is not installed."""

    def no_torch():
        raise ImportError("No module named 'torch'")

    worker = Worker(no_torch)
    failed = Listener(worker).load(ref("m"))
    worker.close()

    assert (failed.code, failed.kept) == (ErrorCode.MODEL_FAILED, None)


def test_the_rate_is_that_of_the_last_seconds(loader):
    now = [100.0]
    worker = Worker(lambda: loader, clock_s=lambda: now[0])
    ear = Listener(worker)
    ear.load(ref("m"))
    worker.submit(request("a", max_new_tokens=10))
    ear.answer("a")
    now[0] += 2.0

    assert worker.load_state().tokens_per_s == 5.0
    now[0] += 60.0
    assert worker.load_state().tokens_per_s == 0.0
    worker.close()
