"""The thread that owns the device, with a runner that says the alphabet and breaks on request."""

import itertools
import threading

import msgspec
import pytest

from llmws.engine.runner import DeviceLostError
from llmws.engine.worker import Worker
from llmws.engine_api import (
    Chunk,
    GenerationRequest,
    ModelFailed,
    ModelLoaded,
    ModelProgress,
    ModelRef,
    ModelUnloaded,
)
from llmws.errors import ModelInvalidError, ModelOutOfMemoryError
from llmws.protocol import ErrorCode
from llmws.protocol.messages import Sampling
from tests.support.listening import TIMEOUT_S, Listener
from tests.support.scripted_runner import ALPHABET, HELD_BYTES, NEED_BYTES, AlphabetLoader


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


def test_what_comes_after_a_load_runs_on_its_model(ear, runner, loader):
    """What came before it goes on, beside it."""
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
        def load(self, model, claim, *, progress):
            if model.name == "first":
                entered.set()
                leave.wait(TIMEOUT_S)
            if model.name == "second":
                reading.wait(TIMEOUT_S)
            return super().load(model, claim, progress=progress)

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
        def load(self, model, claim, *, progress):
            for read in itertools.count():
                progress(read, 10**9)

    worker = Worker(Endless)
    ear = Listener(worker)
    worker.load(ref("m"))
    ear.until(lambda: bool(ear.heard))
    worker.close()

    assert ear.models() == []


# --- models ----------------------------------------------------------------------------------------------------------


def unloaded(ear):
    return [event.name for event in ear.heard if isinstance(event, ModelUnloaded)]


def names(ear):
    return [event.info.ref.name for event in ear.models()]


@pytest.fixture
def crowded(loader):
    """Memory for one model and its streams, not for two."""
    loader.budget_bytes = HELD_BYTES + 3 * NEED_BYTES


def test_models_that_fit_stay_side_by_side(ear, runner, loader):
    assert isinstance(ear.load(ref("n")), ModelLoaded)
    ear.engine.submit(request("old", model=ref("m")))
    ear.engine.submit(request("new", model=ref("n")))
    ear.engine.submit(request("unnamed"))
    ear.answer("old", "new", "unnamed")

    assert {key for step in runner.steps for key in step} == {"old"}
    assert {key for step in loader.runners[1].steps for key in step} == {"new", "unnamed"}
    assert (unloaded(ear), len(loader.runners)) == ([], 2)


def test_a_model_that_is_there_is_not_loaded_again(ear, runner, loader):
    """Requests that name none run on it from then on."""
    ear.load(ref("n"))
    ear.load(ref("m"))
    ear.engine.submit(request("a"))
    ear.answer("a")

    assert names(ear) == ["m", "n", "m"]
    assert len(loader.runners) == 2
    assert runner.steps


def test_a_model_whose_folder_has_changed_is_loaded_again(ear, runner, loader):
    changed = msgspec.structs.replace(ref("m"), size_bytes=101)

    assert ear.load(changed).info.ref == changed
    assert (unloaded(ear), runner.closed) == (["m"], True)


def test_a_folder_that_holds_other_weights_is_loaded_again_after_the_streams_on_the_old_ones(ear, runner, loader):
    """Nobody would tell by its name and size. It is looked into once, not at every step of what it waits for."""
    ear.engine.submit(request("old"))
    ear.until(lambda: bool(ear.chunks("old")))
    loader.changed.add("m")
    looks = loader.looks
    ear.engine.load(ref("m"))
    ear.engine.submit(request("new"))
    ear.answer("old", "new")

    assert [each.info.digest == "other" for each in ear.models()] == [False, True]
    assert not any("new" in step for step in runner.steps)
    assert (runner.closed, loader.looks - looks) == (True, 2)


def test_streams_go_on_while_a_model_is_read(loader):
    """Every report of progress steps them, a cancel takes effect, and what is new waits."""

    class Reading(AlphabetLoader):
        def load(self, model, claim, *, progress):
            if model.name == "n":
                for read in range(3):
                    progress(read, 10)
                worker.cancel("cancelled")
                worker.submit(request("new", model=ref("m"), max_new_tokens=1))
                progress(4, 10)
                self.steps = list(self.runners[0].steps)
            return super().load(model, claim, progress=progress)

    loader = Reading(max_running=4)
    worker = Worker(lambda: loader, clock_s=lambda: 0.0)
    ear = Listener(worker)
    ear.load(ref("m"))
    for key in ("going", "cancelled"):
        worker.submit(request(key))
    ear.until(lambda: bool(ear.chunks("cancelled")))
    worker.load(ref("n"))
    ear.answer("going", "new")
    worker.close()

    assert loader.steps[-1] == ["going"]
    assert sum(step == ["going", "cancelled"] for step in loader.steps) >= 3
    assert not ear.ended("cancelled")
    heard = [type(event).__name__ for event in ear.heard if not isinstance(event, ModelProgress)]
    assert "Chunk" in heard[heard.index("ModelLoaded") + 1 : len(heard) - heard[::-1].index("ModelLoaded")]


def test_streams_get_half_of_the_time_of_a_load():
    """The load took four seconds since the last report: so do they, a second a step."""
    now = [0.0]
    steps = []

    class Reading(AlphabetLoader):
        def load(self, model, claim, *, progress):
            if model.name == "n":
                before = len(self.runners[0].steps)
                now[0] += 4.0
                progress(1, 10)
                steps.append(len(self.runners[0].steps) - before)
            return super().load(model, claim, progress=progress)

    loader = Reading()
    worker = Worker(lambda: loader, clock_s=lambda: now[0])
    ear = Listener(worker)
    ear.load(ref("m"))
    loader.runners[0].on_step = lambda: now.__setitem__(0, now[0] + 1.0)
    worker.submit(request("a"))
    worker.load(ref("n"))
    ear.answer("a")
    ear.until(lambda: len(ear.models()) == 2)
    worker.close()

    assert steps == [4]


@pytest.mark.usefixtures("crowded")
def test_an_idle_model_makes_room(ear, runner, loader):
    assert isinstance(ear.load(ref("n")), ModelLoaded)

    assert (unloaded(ear), runner.closed) == (["m"], True)
    assert not loader.runners[1].closed


def test_the_model_that_was_idle_the_longest_makes_room(ear, runner, loader):
    loader.budget_bytes = 2 * HELD_BYTES + NEED_BYTES
    ear.load(ref("n"))
    ear.engine.submit(request("a", model=ref("m"), max_new_tokens=1))
    ear.answer("a")
    ear.load(ref("o"))

    assert unloaded(ear) == ["n"]


def test_to_be_asked_for_is_to_be_used(ear, runner, loader):
    """A load of a model that is there makes it the last one to go."""
    loader.budget_bytes = 2 * HELD_BYTES + NEED_BYTES
    for name in ("n", "m", "o"):
        ear.load(ref(name))

    assert unloaded(ear) == ["n"]


@pytest.mark.usefixtures("crowded")
def test_a_load_that_needs_the_memory_of_a_busy_model_waits_and_so_do_all_behind(ear, runner, loader):
    ear.engine.submit(request("old", max_new_tokens=5))
    ear.engine.load(ref("n"))
    ear.engine.submit(request("late", model=ref("m"), max_new_tokens=1))
    ear.answer("old", "late")

    assert names(ear) == ["m", "n", "m"]
    assert unloaded(ear) == ["m", "n"]
    assert not any("late" in step for step in runner.steps)


@pytest.mark.usefixtures("crowded")
def test_a_request_for_a_model_that_is_gone_loads_it(ear, runner, loader):
    ear.load(ref("n"))
    ear.engine.submit(request("a", model=ref("m")))

    assert ear.answer("a")[0].finish == "stop"
    assert names(ear) == ["m", "n", "m"]


def test_a_request_whose_model_cannot_be_loaded_fails_with_the_reason(ear, runner):
    ear.engine.submit(request("a", model=ref("bad")))
    (end,) = ear.answer("a")

    assert (end.error_code, end.error_message) == (ErrorCode.MODEL_FAILED, "it is bad")
    assert ear.models()[-1].kept == runner.info


@pytest.mark.parametrize("model", ["n", "bad"])
def test_a_request_that_is_cancelled_while_its_model_is_read_is_forgotten(model):
    """Whether the load succeeds or not, what is behind it is next."""

    class Cancelling(AlphabetLoader):
        def load(self, model, claim, *, progress):
            worker.cancel("a")
            return super().load(model, claim, progress=progress)

    loader = Cancelling()
    worker = Worker(lambda: loader)
    ear = Listener(worker)
    worker.submit(request("a", model=ref(model)))
    worker.submit(request("b", model=ref("m")))
    (b,) = ear.answer("b")
    worker.close()

    assert b.finish == "stop"
    assert ear.chunks("a") == []


def test_a_model_that_takes_more_than_its_files_told_waits_for_the_others(ear, runner, loader):
    """It is read, found too large, and read again when there is room: who runs was promised to go on."""
    loader.told = 10
    loader.budget_bytes = 2 * HELD_BYTES
    ear.engine.submit(request("old"))
    ear.until(lambda: bool(ear.chunks("old")))
    ear.load(ref("n"))

    assert ear.ended("old")
    assert [runner.closed for runner in loader.runners] == [True, True, False]
    assert unloaded(ear) == ["m"]


# --- memory for streams ----------------------------------------------------------------------------------------------


def test_memory_for_streams_is_set_aside_with_the_first_request(ear, runner, loader):
    runner.useful_bytes = loader.budget_bytes
    assert runner.pool_bytes == 0
    ear.engine.submit(request("a"))
    ear.answer("a")

    assert runner.pool_bytes == loader.budget_bytes - HELD_BYTES


def test_an_idle_models_memory_for_streams_goes_to_the_model_that_needs_it(ear, runner, loader):
    """To its weights first, then to its streams, but for what the idle one needs at least."""
    runner.useful_bytes = loader.budget_bytes
    ear.engine.submit(request("a"))
    ear.answer("a")
    ear.load(ref("n"))
    loader.runners[1].useful_bytes = loader.budget_bytes
    ear.engine.submit(request("b", model=ref("n")))
    ear.answer("b")

    assert runner.pool_bytes == 0
    assert loader.runners[1].pool_bytes == loader.budget_bytes - 2 * HELD_BYTES - NEED_BYTES


def test_a_request_waits_for_memory_that_another_models_streams_have(ear, runner, loader):
    loader.budget_bytes = 2 * HELD_BYTES + NEED_BYTES
    ear.load(ref("n"))
    ear.engine.submit(request("old", model=ref("m")))
    ear.engine.submit(request("new", model=ref("n")))
    ear.answer("old", "new")

    ends = [event.key for event in ear.heard if isinstance(event, Chunk)]
    assert ends == ["old"] * ends.count("old") + ["new"] * ends.count("new")


def test_memory_that_is_not_there_after_all_fails_the_request_alone(ear, runner):
    runner.is_out_of_memory = True
    ear.engine.submit(request("a"))
    assert ear.answer("a")[0].error_code == ErrorCode.MODEL_OOM

    runner.is_out_of_memory = False
    ear.engine.submit(request("b"))
    assert ear.answer("b")[0].finish == "stop"


# --- loads that fail -------------------------------------------------------------------------------------------------


def test_a_failed_load_keeps_the_old_model(ear, runner):
    failed = ear.load(ref("bad"))

    assert failed == ModelFailed(name="bad", code=ErrorCode.MODEL_FAILED, message="it is bad", kept=runner.info)
    assert not runner.closed


@pytest.mark.usefixtures("crowded")
def test_what_failed_is_not_read_again_before_its_folder_changes_or_somebody_says_again(ear, runner, loader):
    """Else every request for it would have the others make room."""
    loader.broken.add("n")
    first = ear.load(ref("n"))
    gone = len(unloaded(ear))
    ear.engine.submit(request("a", model=ref("n")))
    (a,) = ear.answer("a")
    assert (a.error_message, len(unloaded(ear))) == (first.message, gone)

    loader.hopeless.add("n")
    assert ear.load(ref("n")).message == first.message
    ear.engine.load(ref("n"), again=True)
    ear.until(lambda: ear.models()[-1].message == "it never fits")

    loader.hopeless.clear()
    loader.broken.clear()
    loader.changed.add("n")
    ear.engine.submit(request("b", model=ref("n")))
    assert ear.answer("b")[0].finish == "stop"


@pytest.mark.usefixtures("crowded")
def test_no_model_makes_room_for_one_that_never_fits(ear, runner, loader):
    loader.hopeless.add("huge")
    failed = ear.load(ref("huge"))

    assert (failed.message, failed.kept) == ("it never fits", runner.info)
    assert not runner.closed


@pytest.mark.usefixtures("crowded")
def test_a_model_that_made_room_comes_back_after_a_failed_load(ear, runner, loader):
    failed = ear.load(ref("bad"))
    ear.engine.submit(request("a"))

    assert failed.kept == runner.info
    assert [runner.closed for runner in loader.runners] == [True, False]
    assert ear.answer("a")[0].finish == "stop"


def test_what_is_left_goes_on_after_a_failed_load(ear, runner, loader):
    """The model of requests that name none had to go; another one is there, so it does not come back."""
    loader.budget_bytes = 2 * HELD_BYTES + NEED_BYTES
    ear.load(ref("n"))
    ear.engine.submit(request("a", model=ref("m"), max_new_tokens=1))
    ear.answer("a")
    failed = ear.load(ref("bad"))

    assert (failed.kept, unloaded(ear)) == (runner.info, ["n"])


@pytest.mark.usefixtures("crowded")
def test_a_model_that_does_not_come_back_is_not_claimed(ear, runner, loader):
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
