"""Starts everybody, asks them in turn, and writes what came of it."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from bench.engines import alone, comparing, contestants
from bench.engines.contestants import CONTINUOUS, GENERATE, LLAMA, LLMWS, SERVE, SERVER, Contestant, Setting
from bench.engines.model import parameters
from bench.engines.model import write as write_model
from bench.engines.remote import Answer
from bench.engines.workload import FULL, TINY, Workload, prompts
from bench.figures import Figure, figure
from bench.report import RESULTS, finish, host

NAMES: Final = {
    "generate": GENERATE,
    "continuous": CONTINUOUS,
    "serve": SERVE,
    "llama": LLAMA,
    "llmws": LLMWS,
    "server": SERVER,
}
PACKAGES: Final = ("torch", "transformers", "numpy")
WARM_UP_TOKENS: Final = 4


def main() -> None:
    """Measures and prints a table; a whole run also writes `bench/results/<date>-<host>-engine.json`."""
    options = _options()
    # Told to end, it must still end those that it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    workload = TINY if options.tiny else FULL
    started, load = datetime.now(UTC), os.getloadavg()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmws-bench-")))
        setting = Setting(workload, scratch / "models" / "bench", scratch, _interpreter(options.llama_python))
        figures = _measure(
            [NAMES[name] for name in dict.fromkeys(options.only or NAMES)], setting, options.rounds, stack
        )
    finish(
        figures,
        started=started,
        load_average_before=load,
        host=options.host,
        packages=PACKAGES,
        kind=None if options.tiny or options.only else "-engine",
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.engines", description="Measures the engine of this machine beside others; on CPU."
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often everybody is asked (default 3)")
    parser.add_argument("--only", nargs="+", choices=NAMES, help="these contestants; nothing is written")
    parser.add_argument("--llama-python", metavar="PATH", help="an interpreter that has llama-cpp-python")
    parser.add_argument("--tiny", action="store_true", help="a toy model: does the script work? Nothing is written")
    parser.add_argument("--host", default=host(), help="a neutral name of this machine")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds: at least 1")
    return options


def _interpreter(name: str | None) -> str | None:
    if name is None:
        return None
    if (found := shutil.which(name)) is None:
        sys.exit(f"--llama-python: {name} is not a program")
    return found


def _measure(names: Sequence[str], setting: Setting, rounds: int, stack: ExitStack) -> list[Figure]:
    """Starts who can take part, and asks."""
    workload = setting.workload
    write_model(setting.model, workload.shape)
    present = []
    for name in names:
        if (why := contestants.absent(name, setting)) is None:
            present.append(name)
        else:
            _say(f"without {name}: {why}")
    everyone = []
    for name in present:
        _say(f"starting {name} …")
        everyone += contestants.start([name], setting, stack)
    by_name = {each.name: each for each in everyone}
    answers = _ask(everyone, workload, rounds)
    kept = comparing.kept(LLAMA, RESULTS) if not workload.toy and LLAMA not in by_name else None
    figures = [figure("parameters of the model", "million", [parameters(workload.shape) / 1e6])]
    figures += comparing.figures(answers, kept_llama=kept)
    if (llmws := by_name.get(LLMWS)) is not None:
        _say("alone …")
        figures += alone.interference(llmws, workload, rounds) + alone.next_turn(llmws, workload, rounds)
        if not workload.toy:
            figures += alone.sampler(llmws)
    if (generate := by_name.get(GENERATE)) is not None:
        figures += alone.estimate(generate, workload)
    return figures


def _ask(everyone: Sequence[Contestant], workload: Workload, rounds: int) -> dict[tuple[str, int], list[Answer]]:
    """Everybody in turn, round by round, the same prompts in a round."""
    warm_up = prompts(workload, name="warm up", streams=max(workload.streams), tokens=WARM_UP_TOKENS)
    for each in everyone:
        each.generate(warm_up, WARM_UP_TOKENS)
    answers: dict[tuple[str, int], list[Answer]] = {}
    for number in range(rounds):
        for streams in workload.streams:
            asked = prompts(workload, name=f"round {number}", streams=streams, tokens=workload.prompt_tokens)
            for each in everyone:
                if each.once and number > 0:
                    continue
                _say(f"round {number + 1} of {rounds}, {streams} at once: {each.name}")
                answers.setdefault((each.name, streams), []).append(each.generate(asked, workload.new_tokens))
    return answers


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
