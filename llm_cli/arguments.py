"""The command line of `llm`.

Knows no terminal and no server. Imports nothing heavy, so that `llm --version` and `llm --help` answer at once.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import NamedTuple

from llmws import __version__

DEFAULT_PORT = 8765

_EPILOG = """\
Without a prompt, on a terminal: an interactive chat (/help there).
Piped input is part of the prompt:  cat notes.txt | llm "summarise"
An answer cut short goes on:        llm --session UUID

exit status: 0 ok, 1 error, 2 usage, 3 unreachable or not trusted, 4 unauthorized, 5 generation failed, 130 interrupted
"""

_SAMPLING = (
    ("--temperature", float, "T", "0 is greedy, up to 2"),
    ("--top-p", float, "P", "nucleus sampling, above 0, up to 1"),
    ("--top-k", int, "K", "sample from the K likeliest tokens; 0 for all"),
    ("--min-p", float, "P", "drop tokens below this share of the likeliest"),
    ("--repetition-penalty", float, "R", "above 1 discourages repetition"),
    ("--seed", int, "N", "makes sampling repeatable"),
)


class Options(NamedTuple):
    """What the command line asks for; None where it says nothing.

    Attributes:
        prompt: the words of the prompt, joined; empty for none.
        sampling: sampling parameters by wire name.
        wait_s: how long a one-shot call waits for the server.
        temporary: delete the session when leaving.
        images: files that go with the first question.
    """

    prompt: str
    url: str | None
    host: str | None
    port: int | None
    token: str | None
    token_file: str | None
    tls_ca: str | None
    session_id: str | None
    resume_last: bool
    json: bool
    model: str | None
    system: str | None
    sampling: dict[str, float | int | bool | str | list[str] | dict[str, float] | None]
    wait_s: float
    temporary: bool
    images: list[str]


def parse(argv: Sequence[str]) -> Options:
    """Reads the command line.

    Raises:
        SystemExit: status 2 on wrong usage, 0 after `--help` and `--version`.
    """
    parser = _parser()
    try:
        "".join(argv).encode()
    except UnicodeEncodeError:
        parser.error("the command line is not valid UTF-8")
    # Intermixed parsing would read options after `--` too.
    end = argv.index("--") if "--" in argv else len(argv)
    given = parser.parse_intermixed_args(argv[:end])
    if given.url is not None and (given.host is not None or given.port is not None):
        parser.error("--url already names the host and the port")
    if given.session is not None and given.resume_last:
        parser.error("--session already names the session that --continue would look for")
    if given.temporary and (given.session is not None or given.resume_last):
        parser.error("--temporary is for a new session")
    sampling = {
        name: value
        for flag, *_ in _SAMPLING
        if (value := getattr(given, name := flag[2:].replace("-", "_"))) is not None
    }
    if given.max_tokens is not None:
        sampling["max_new_tokens"] = given.max_tokens
    if given.stop:
        sampling["stop"] = given.stop
    return Options(
        prompt=" ".join([*given.prompt, *argv[end + 1 :]]),
        url=given.url,
        host=given.host,
        port=given.port,
        token=given.token,
        token_file=given.token_file,
        tls_ca=given.tls_ca,
        session_id=given.session,
        resume_last=given.resume_last,
        json=given.json,
        model=given.model,
        system=given.system,
        sampling=sampling,
        wait_s=given.wait,
        temporary=given.temporary,
        images=given.image,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llm",
        description="Ask a language model on an llmws server, or chat with it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("prompt", nargs="*", metavar="PROMPT", help="the question; words are joined")
    parser.add_argument("-m", "--model", metavar="NAME", help="which model answers (default: the server's present one)")
    parser.add_argument("-s", "--system", metavar="TEXT", help="the system message")
    parser.add_argument(
        "--image", action="append", default=[], metavar="FILE", help="show the model an image; may be repeated"
    )
    parser.add_argument("--json", action="store_true", help="print the events as JSON lines")
    parser.add_argument("--version", action="version", version=f"llm {__version__}")
    session = parser.add_argument_group("session")
    session.add_argument(
        "--session", type=_session_id, metavar="UUID", help="go on with this session, first with what is missing of it"
    )
    session.add_argument(
        "-c", "--continue", action="store_true", dest="resume_last", help="go on with the session used last"
    )
    session.add_argument("--temporary", action="store_true", help="delete the session and its text when leaving")
    server = parser.add_argument_group("server (default: the one that runs on this account)")
    server.add_argument("--url", metavar="URL", help=f"e.g. http://127.0.0.1:{DEFAULT_PORT} or https://host")
    server.add_argument("--host", metavar="HOST", help="instead of --url; with --tls-ca over TLS")
    server.add_argument("--port", type=_port, metavar="PORT", help="instead of --url")
    server.add_argument("--token", metavar="TOKEN", help="other users of this machine can see it; prefer --token-file")
    server.add_argument("--token-file", metavar="FILE", help="a file that holds the token")
    server.add_argument(
        "--tls-ca", metavar="FILE", help="trust this authority's, or the server's own, certificate instead of the usual"
    )
    server.add_argument(
        "--wait",
        type=_seconds,
        default=3.0,
        metavar="SECONDS",
        help="how long to wait for the server (default: %(default)g)",
    )
    sampling = parser.add_argument_group("sampling (default: the session's, then the server's)")
    sampling.add_argument("--max-tokens", type=int, metavar="N", help="longest answer, in tokens")
    for flag, kind, metavar, text in _SAMPLING:
        sampling.add_argument(flag, type=kind, metavar=metavar, help=text)
    sampling.add_argument("--stop", action="append", metavar="TEXT", help="end before this text; may be repeated")
    return parser


def _session_id(text: str) -> str:
    from uuid import UUID  # noqa: PLC0415 - `--version` does not wait for it

    try:
        return str(UUID(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a session's UUID") from None


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds
