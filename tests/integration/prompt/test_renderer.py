"""The renderer with its real helper process: every job answered once and in order, whatever happens to the process."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from llmws.engine_api import ModelRef, PromptEvent, PromptFailed
from llmws.prompt import model_text
from llmws.prompt.limits import Limits
from llmws.protocol import ErrorCode
from tests.integration.prompt.harness import WAIT_S, Helper, Renderer, StuckModel, good_model, helpers_of
from tests.support.paths import ROOT


@pytest.fixture
def renderer() -> Iterator[Renderer]:
    with Renderer() as renderer:
        yield renderer


@pytest.fixture
def model(tmp_path: Path) -> ModelRef:
    return good_model(tmp_path / "good")


def test_jobs_are_answered_once_each_in_order(renderer: Renderer, model: ModelRef) -> None:
    for n in range(50):
        renderer.ask(model, str(n))
    assert [renderer.answer().key for _ in range(50)] == [str(n) for n in range(50)]
    assert renderer.events.empty()


def test_a_prompt_of_a_mebibyte_goes_through_and_leaves_no_memory_behind(renderer: Renderer, model: ModelRef) -> None:
    text = "the quick brown fox jumps over the lazy dog \U0001f642 " * 23_000
    assert 2**20 < len(text.encode()) < 1.2 * 2**20
    ids = renderer.ids(model, content=text, max_context=2**22)
    ours = model_text.load(Path(model.location))
    assert list(ids) == ours.tokenize(
        f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n", special_tokens=False
    )
    process = renderer.process
    renderer.ids(model)  # memory goes back after an answer, before the next job is taken
    assert process.memory_info().rss < 64 * 2**20


def test_more_than_is_ever_handed_over_is_refused_at_once(renderer: Renderer, model: ModelRef) -> None:
    renderer.ask(model, content="x" * (64 * 2**20))
    message = renderer.failure().message
    assert message.startswith("the conversation has 671")
    assert renderer.ids(model)


def test_a_job_that_cannot_be_handed_over_is_answered_all_the_same(
    renderer: Renderer, model: ModelRef, caplog: pytest.LogCaptureFixture
) -> None:
    """Half a surrogate pair is no Unicode text; no door lets one in."""
    renderer.ids(model)
    process = renderer.process
    renderer.ask(model, content="secret \ud800")
    message = "the prompt could not be handed over"
    assert renderer.failure() == PromptFailed(key="k", code=ErrorCode.INTERNAL, message=message)
    assert renderer.ids(model)
    assert renderer.process.pid == process.pid
    [line] = [record.getMessage() for record in caplog.records]
    assert line == "handing over a prompt for models/good failed: UnicodeEncodeError"


def test_more_jobs_than_may_wait_are_refused_at_once(model: ModelRef) -> None:
    entered, leave = threading.Event(), threading.Event()
    events: list[PromptEvent] = []

    def deliver(event: PromptEvent) -> None:
        events.append(event)
        if event.key == "running":
            entered.set()
            leave.wait(WAIT_S)

    renderer = Renderer(max_jobs=1, deliver=deliver)
    renderer.ask(model, "running")
    assert entered.wait(WAIT_S)
    renderer.ask(model, "waiting")
    renderer.ask(model, "refused")
    refused = PromptFailed(key="refused", code=ErrorCode.QUEUE_FULL, message="too many prompts are waiting")
    assert events[1:] == [refused]
    leave.set()
    renderer.inner.close()


# --- the process ends ----------------------------------------------------------------------------------------------


def test_a_kill_in_the_middle_of_a_job_ends_that_job_alone(
    renderer: Renderer, model: ModelRef, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stuck = StuckModel(tmp_path / "stuck")
    before = renderer.ids(model)
    renderer.ask(stuck.ref, "stuck")
    for n in range(5):
        renderer.ask(model, str(n))
    held = stuck.wait_until_read()
    killed = renderer.process
    killed.send_signal(signal.SIGKILL)
    assert renderer.failure("stuck") == PromptFailed(
        key="stuck",
        code=ErrorCode.MODEL_FAILED,
        message="the model's chat template or tokenizer ended with SIGKILL; 2048 MiB of memory is what it may take",
    )
    assert [renderer.answer().key for _ in range(5)] == list("01234")
    assert renderer.ids(model) == before
    os.close(held)
    assert renderer.events.empty()
    assert not psutil.pid_exists(killed.pid)
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"prompt process {killed.pid} on a prompt for models/stuck: ended with SIGKILL")


@pytest.mark.parametrize("is_noticed", [False, True])
def test_a_kill_between_two_jobs_costs_no_job(renderer: Renderer, model: ModelRef, is_noticed: bool) -> None:
    """Noticed or not before the next job comes."""
    before = renderer.ids(model)
    killed = renderer.process
    killed.send_signal(signal.SIGKILL)
    while is_noticed and killed.status() != psutil.STATUS_ZOMBIE:
        pass
    assert renderer.ids(model) == before
    assert renderer.process.pid != killed.pid


def test_a_job_that_takes_too_long_is_stopped(tmp_path: Path, model: ModelRef) -> None:
    stuck = StuckModel(tmp_path / "stuck")
    with Renderer(limits=Limits(base_s=2.0, per_mib_s=0.0)) as renderer:
        before = renderer.ids(model)
        killed = renderer.process
        renderer.ask(stuck.ref, "stuck")
        message = "the model's chat template or tokenizer took more than 2 s"
        assert renderer.failure("stuck").message == message
        assert renderer.ids(model) == before
        assert not psutil.pid_exists(killed.pid)


NONSENSE = {
    "a frame too large": r'take(); end.sendall(b"\xff\xff\xff\xff")',
    "no MessagePack": 'take(); line.send(b"nonsense")',
    "nothing": 'take(); line.send(b"")',
    "another job's answer": 'take(); line.send(encode(Answer(PromptReady(key="another", ids=(1,)))))',
    "as many ids as the context": "line.send(encode(Answer(PromptReady(key=take().key, ids=(1,) * 100))))",
    "no ids": "line.send(encode(Answer(PromptReady(key=take().key, ids=()))))",
    "a negative id": "line.send(encode(Answer(PromptReady(key=take().key, ids=(1, -1)))))",
    "more turns dropped than there were": (
        "line.send(encode(Answer(PromptReady(key=take().key, ids=(1,), dropped_turns=2))))"
    ),
    "images that no turn has": "line.send(encode(Answer(PromptReady(key=take().key, ids=(1,), images=1))))",
    "a message without end": (
        'line.send(encode(Answer(PromptFailed(key=take().key, code=ErrorCode.MODEL_FAILED, message="x" * 9000))))'
    ),
}


@pytest.mark.parametrize("script", NONSENSE.values(), ids=NONSENSE.keys())
def test_a_process_that_answers_nonsense_is_replaced(tmp_path: Path, model: ModelRef, script: str) -> None:
    helper = Helper(tmp_path, script + "\nline.receive(0)")
    with Renderer(command=helper.command) as renderer:
        renderer.ask(model, "first")
        renderer.ask(model, "second")
        assert renderer.failure("first") == PromptFailed(
            key="first",
            code=ErrorCode.MODEL_FAILED,
            message="the model's chat template or tokenizer gave an answer that makes no sense",
        )
        assert renderer.answer().key == "second"
        assert renderer.ids(model, "third")
    assert helper.starts == 2


def test_a_process_whose_code_went_wrong_is_not_used_again(
    tmp_path: Path, model: ModelRef, caplog: pytest.LogCaptureFixture
) -> None:
    script = """
failed = PromptFailed(key=take().key, code=ErrorCode.MODEL_FAILED, message="failed")
line.send(encode(Answer(failed, fault="Panic in\\n\\x1b[31mtokenize")))
line.receive(2**26)
line.send(b"")
line.send(encode(Answer(PromptReady(key="k", ids=(7,)))))
"""
    helper = Helper(tmp_path, script)
    with Renderer(command=helper.command) as renderer:
        renderer.ask(model)
        assert renderer.failure().message == "failed"
        assert len(renderer.ids(model)) > 1
    [line] = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    place = "Panic in [31mtokenize"
    assert line == f"rendering a prompt for models/good failed in an unforeseen way: {place}"


def test_a_process_that_only_closes_its_line_is_killed(tmp_path: Path, model: ModelRef) -> None:
    script = "import signal; take(); end.close(); os.closerange(0, 3); signal.pause()"
    helper = Helper(tmp_path, script)
    others = psutil.Process().children()
    with Renderer(command=helper.command) as renderer:
        renderer.ask(model)
        assert renderer.failure().message == "the model's chat template or tokenizer closed its line"
        assert renderer.ids(model)
        assert len([each for each in psutil.Process().children() if each not in others]) == 1


def test_a_process_that_wrote_before_it_died_is_no_good_for_another_job(tmp_path: Path, model: ModelRef) -> None:
    """An answer is taken, and what comes after it too: the next job is not given to that process."""
    helper = Helper(tmp_path, "line.send(encode(Answer(PromptReady(key=take().key, ids=(7,)))))")
    with Renderer(command=helper.command) as renderer:
        assert renderer.ids(model) == (7,)
        assert len(renderer.ids(model)) > 1
    assert helper.starts == 2


def test_a_job_that_ends_two_processes_before_they_have_it_is_given_up(tmp_path: Path, model: ModelRef) -> None:
    helper = Helper(tmp_path, "line.send(b''); line.receive(2**26)", bad_starts=2)
    with Renderer(command=helper.command) as renderer:
        renderer.ask(model)
        assert renderer.failure().message == "the process that renders prompts died of this prompt twice"
        assert renderer.ids(model)
    assert helper.starts == 3


# --- the process does not start ------------------------------------------------------------------------------------


def test_a_job_outlasts_a_few_starts_that_fail(tmp_path: Path, model: ModelRef) -> None:
    helper = Helper(tmp_path, "sys.exit(3)", bad_starts=2)
    with Renderer(command=helper.command) as renderer:
        assert renderer.ids(model)
    assert helper.starts == 3


def test_without_a_process_jobs_fail_at_once_and_starts_are_rare(
    tmp_path: Path, model: ModelRef, caplog: pytest.LogCaptureFixture
) -> None:
    helper = Helper(tmp_path, "sys.exit(3)", bad_starts=1000)
    with Renderer(command=helper.command) as renderer:
        for n in range(500):
            renderer.ask(model, str(n))
        failures = [renderer.failure(str(n)) for n in range(500)]
        message = "the process that renders prompts does not start"
        assert {(each.code, each.message) for each in failures} == {(ErrorCode.INTERNAL, message)}
        assert 3 <= helper.starts <= 5
    assert "the prompt process did not start: ended with status 3" in caplog.records[0].getMessage()


@pytest.mark.parametrize("program", ["/nowhere/python", "\0"], ids=["not there", "no path at all"])
def test_a_program_that_cannot_be_run_is_a_failed_start(model: ModelRef, program: str) -> None:
    with Renderer(command=(program,)) as renderer:
        renderer.ask(model)
        assert renderer.failure().message == "the process that renders prompts does not start"


def test_a_start_that_hangs_is_a_failed_start(tmp_path: Path, model: ModelRef) -> None:
    helper = Helper(tmp_path, "import signal; signal.pause()")
    with Renderer(command=helper.command, limits=Limits(start_s=2.0)) as renderer:
        assert renderer.ids(model)


# --- the server ends -----------------------------------------------------------------------------------------------


def test_close_does_not_wait_for_a_job_and_leaves_nothing_behind(tmp_path: Path, model: ModelRef) -> None:
    stuck = StuckModel(tmp_path / "stuck")
    renderer = Renderer()
    renderer.ask(stuck.ref)
    renderer.ask(model)
    held = stuck.wait_until_read()
    process = renderer.process
    began_s = time.monotonic()
    renderer.inner.close()
    took_s = time.monotonic() - began_s
    os.close(held)
    renderer.ask(model)
    with pytest.raises(queue.Empty):
        renderer.events.get_nowait()
    assert took_s < 2
    assert not psutil.pid_exists(process.pid)
    assert not [thread for thread in threading.enumerate() if thread.name == "llmws-prompt"]


def test_close_does_not_wait_for_a_start(tmp_path: Path) -> None:
    helper = Helper(tmp_path, "import signal; signal.pause()")
    others = psutil.Process().children()
    renderer = Renderer(command=helper.command)
    while not helper.starts:
        pass
    renderer.inner.close()
    assert [each for each in psutil.Process().children() if each not in others] == []


SERVER = """
import queue, sys
from pathlib import Path
from llmws.engine_api import ModelRef, PromptJob, Turn
from llmws.prompt.renderer import ProcessRenderer

def ask(location):
    ref = ModelRef(name="m", path="models/m", location=location, size_bytes=0, source="models")
    renderer.render(PromptJob(key="k", model=ref, turns=(Turn(role="user", content="x"),), max_context=99, reserve=1))

answers = queue.Queue()
renderer = ProcessRenderer()
renderer.start(answers.put)
ask(sys.argv[1])
print(answers.get().key, flush=True)
if len(sys.argv) > 2:
    ask(sys.argv[2])
sys.stdin.read()
"""


@pytest.mark.parametrize("is_busy", [False, True])
def test_the_process_dies_with_a_server_that_is_killed(tmp_path: Path, model: ModelRef, is_busy: bool) -> None:
    stuck = StuckModel(tmp_path / "stuck")
    arguments = [model.location, *([stuck.ref.location] if is_busy else [])]
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    with server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"k\n"
        held = stuck.wait_until_read() if is_busy else os.open(os.devnull, os.O_RDONLY)
        [helper] = helpers_of(psutil.Process(server.pid))
        server.kill()
    gone_by_s = time.monotonic() + WAIT_S
    while helper.is_running() and helper.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < gone_by_s
    os.close(held)


# --- what it is made of --------------------------------------------------------------------------------------------


def test_the_process_gets_neither_secrets_nor_handles_of_the_server(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: ModelRef
) -> None:
    monkeypatch.setenv("LLMWS_TEST_SECRET", "secret")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    with (tmp_path / "open").open("w") as handle, Renderer() as renderer:
        os.set_inheritable(handle.fileno(), True)
        renderer.ids(model)
        process = renderer.process
        assert process.environ().keys() - {"LC_CTYPE"} == {"PYTHONPATH", "TOKENIZERS_PARALLELISM", "TZ"} | (
            process.environ().keys() & {"LD_LIBRARY_PATH"}
        )
        targets = {int(fd.name): str(fd.readlink()) for fd in Path(f"/proc/{process.pid}/fd").iterdir()}
        assert sorted(targets) == [0, 1, 2]
        assert targets[0].startswith("socket:")
        assert {targets[1], targets[2]} == {"/dev/null"}
        assert (process.cwd(), os.getsid(process.pid)) == ("/", process.pid)


def test_the_server_s_side_imports_neither_templates_nor_tokenizers_and_the_process_s_no_torch() -> None:
    heavy = "{'jinja2', 'tokenizers', 'torch', 'transformers', 'numpy', 'asyncio'}"
    for module, allowed in (("renderer", set()), ("worker", {"jinja2", "tokenizers"})):
        code = f"import sys, llmws.prompt.{module}; print(sorted({heavy} & sys.modules.keys()))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
        assert set(eval(done.stdout)) == allowed


def test_the_process_is_small(renderer: Renderer, model: ModelRef) -> None:
    renderer.ids(model)
    assert renderer.process.memory_info().rss < 64 * 2**20
