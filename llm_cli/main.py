"""The console script `llm`.

Imports only what the call at hand needs: `--version` and `--help` must answer at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from llm_cli import arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `llm`.

    Args:
        argv: the arguments; None for the process's own.

    Returns:
        The exit status, as listed in `llm --help`.

    Raises:
        SystemExit: from argparse, after `--help`, `--version` and wrong usage.
    """
    options = arguments.parse(sys.argv[1:] if argv is None else argv)
    is_interactive = not options.prompt and sys.stdin.isatty()
    prompt = options.prompt if sys.stdin.isatty() else _with_input(options.prompt)

    from llm_cli import launch  # noqa: PLC0415 - see above

    return launch.run(options, prompt, is_interactive=is_interactive)


def _with_input(prompt: str) -> str:
    """The prompt with standard input in front: what a question is about comes before the question."""
    given = sys.stdin.buffer.read().decode(errors="replace").strip()
    return "\n\n".join(part for part in (given, prompt) if part)


if __name__ == "__main__":
    sys.exit(main())
