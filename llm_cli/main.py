"""The console script `llm`.

Imports only what the call at hand needs: `--version` and `--help` must answer at once.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Sequence

from llm_cli import arguments

MAX_INPUT_BYTES = 2**20
"""What is longer no server takes with its default settings."""
_SILENT_S = 1.0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `llm`.

    Args:
        argv: the arguments; None for the process's own.

    Returns:
        The exit status, as listed in `llm --help`.

    Raises:
        SystemExit: from argparse, after `--help`, `--version` and wrong usage.
    """
    try:
        return _main(argv)
    except KeyboardInterrupt:
        return 130  # while it began; later on it is dealt with where it comes


def _main(argv: Sequence[str] | None) -> int:
    _fill_standard_streams()
    options = arguments.parse(sys.argv[1:] if argv is None else argv)
    is_interactive = not options.prompt and sys.stdin.isatty()
    prompt = options.prompt if sys.stdin.isatty() else _with_input(options.prompt)

    from llm_cli import launch  # noqa: PLC0415 - see above

    return launch.run(options, prompt, is_interactive=is_interactive)


def _with_input(prompt: str) -> str:
    """The prompt with standard input in front: what a question is about comes before the question."""
    if sys.stderr.isatty() and not select.select([sys.stdin], [], [], _SILENT_S)[0]:
        print("llm: waiting for standard input", file=sys.stderr)
    data = sys.stdin.buffer.read(MAX_INPUT_BYTES + 1)
    if len(data) > MAX_INPUT_BYTES:
        print(f"llm: standard input is longer than {MAX_INPUT_BYTES} bytes", file=sys.stderr)
        raise SystemExit(2)
    given = data.decode(errors="replace").strip("\r\n")
    return "\n\n".join(part for part in (given, prompt) if part.strip())


def _fill_standard_streams() -> None:
    """Replaces input and errors where the caller closed them, as the next socket would get their numbers.

    Raises:
        SystemExit: there is no standard output.
    """
    if sys.stdin is None:
        sys.stdin = os.fdopen(os.open(os.devnull, os.O_RDONLY), closefd=False)
    if sys.stdout is None:
        print("llm: standard output is closed", file=sys.stderr)
        raise SystemExit(1)
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", closefd=False)


if __name__ == "__main__":
    sys.exit(main())
