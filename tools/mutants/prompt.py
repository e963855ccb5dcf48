"""Faults of the process that renders prompts."""

from mutants.planted import Mutant

PROMPT = "llmws/prompt/"
RENDERER = "tests/integration/prompt/test_renderer.py"

MUTANTS = [
    Mutant("a prompt that takes too long is waited for", PROMPT + "process.py",
           "        ends_s = time.monotonic() + time_s\n", "        ends_s = None\n", RENDERER),
    Mutant("a job that ended one process is given to the next", PROMPT + "process.py",
           "raise (BrokenOffError if has_begun else NotBegunError)", "raise (NotBegunError)", RENDERER),
    Mutant("a process that dies while it is idle takes the next job with it", PROMPT + "process.py",
           "raise (BrokenOffError if has_begun else NotBegunError)", "raise (BrokenOffError)", RENDERER),
    Mutant("another job's answer is taken", PROMPT + "process.py", "if event.key != job.key:", "if False:", RENDERER),
    Mutant("more ids than the context holds are taken", PROMPT + "process.py",
           "0 < len(event.ids) < job.max_context", "0 < len(event.ids)", RENDERER),
    Mutant("the process is told the server's secrets", PROMPT + "process.py", "return {**kept,", "return {**os.environ,", RENDERER),
    Mutant("Ctrl-C in the terminal reaches the process", PROMPT + "process.py", "start_new_session=True", "start_new_session=False", RENDERER),
    Mutant("a killed process stays a zombie", PROMPT + "process.py",
           "            self._process.wait(REAP_TIMEOUT_S)\n", "            pass\n", RENDERER),
    Mutant("starts that fail follow each other without a pause", PROMPT + "renderer.py",
           "time.monotonic() + pause_s", "time.monotonic()", RENDERER),
    Mutant("close waits for the running job", PROMPT + "renderer.py",
           "            if self._process is not None:\n                self._process.kill()", "            pass", RENDERER),
    Mutant("any number of jobs may wait", PROMPT + "renderer.py", "queue.Queue(max_jobs)", "queue.Queue()", RENDERER),
    Mutant("a process whose code went wrong is used again", PROMPT + "renderer.py",
           "                    self._drop_process()  # what went wrong", "                    # what went wrong", RENDERER),
    Mutant("a frame of any size is read", PROMPT + "frames.py", "if size > limit_bytes:", "if False:", "tests/unit/prompt/test_frames.py"),
    Mutant("a busy process outlives a server that is killed", PROMPT + "confinement.py",
           "prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)", "prctl(_PR_SET_PDEATHSIG, 0)", RENDERER),
    Mutant("memory has no bound", PROMPT + "confinement.py", "        _lower(resource.RLIMIT_AS, memory_bytes)", "        pass",
           "tests/integration/prompt/test_confinement.py::test_memory_ends_at_the_bound"),
    Mutant("processor time has no bound", PROMPT + "confinement.py", "    signal.setitimer(signal.ITIMER_PROF, more_s)\n", "",
           "tests/integration/prompt/test_confinement.py::test_processor_time_is_given_anew_for_each_job"),
    Mutant("what a long prompt took is kept", PROMPT + "worker.py", "        give_memory_back()\n", "", RENDERER),
    Mutant("what a failed template took is kept", PROMPT + "worker.py", "        gc.collect()", "        # gc.collect()",
           "tests/integration/prompt/test_bombs.py"),
    Mutant("an id that the model does not have is sent to it", PROMPT + "render.py", "if ids and max(ids) >= model.vocab_size:", "if False:",
           "tests/unit/prompt/test_render.py"),
    Mutant("any number of large tokenizers is kept", PROMPT + "worker.py", "+ wanted_bytes > self._kept_bytes", "+ wanted_bytes < 0",
           "tests/unit/prompt/test_worker.py"),
]  # fmt: skip
