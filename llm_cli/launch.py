"""From the command line to a running chat or a one-shot answer."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import sys
import warnings
from collections.abc import Sequence
from socket import socket

from llm_cli import exits, target
from llm_cli.arguments import Options
from llm_cli.bookmark import Bookmarks
from llm_cli.conversation import shown_of
from llm_cli.render import clean_line
from llm_cli.scribe import scribe
from llm_cli.show import Shown
from llmws.client import CertificateError, ReadableTokenWarning, image_file
from llmws.client.images import MAX_IMAGES
from llmws.client.link import READABLE_ON_THE_WAY
from llmws.client.requests import sampling
from llmws.protocol.messages import Image, Sampling


def run(options: Options, prompt: str, *, is_interactive: bool) -> int:
    """Runs what the options ask for and returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a character gets a question mark, not a traceback.
            stream.reconfigure(errors="replace")
    bookmarks = Bookmarks()
    if options.resume_last:
        options = options._replace(session_id=bookmarks.last_used())
        if options.session_id is None:
            return _usage("there is no session to continue")
    if not (is_interactive or prompt or options.images or options.session_id):
        return _usage("nothing to ask: give a prompt, or pipe one in")
    if is_interactive and (options.json or not sys.stdout.isatty()):
        return _usage("the chat is for a person at a terminal; give a prompt")
    record = bookmarks.read(options.session_id) if options.session_id else None
    try:
        server = target.choose(options, record)
        config = sampling(options.sampling) if options.sampling else None
        if len(options.images) > MAX_IMAGES:
            raise ValueError(f"{len(options.images)} images; a question takes {MAX_IMAGES}")
        images = [image_file(path) for path in options.images]
    except ValueError as error:
        return _usage(str(error))
    except CertificateError as error:
        _say(exits.explain(error))
        return exits.status_of(error)
    _warn(server)
    try:
        with scribe(sys.stdout.encoding) as pieces:
            shown = shown_of(record)
            return asyncio.run(
                _main(
                    options,
                    server,
                    prompt,
                    config,
                    images=images,
                    shown=shown,
                    pieces=pieces,
                    is_interactive=is_interactive,
                )
            )
    except (KeyboardInterrupt, asyncio.CancelledError):
        return exits.INTERRUPTED
    except OSError as error:
        if not isinstance(error, BrokenPipeError) and error.errno != errno.EIO:
            raise
        # Nobody reads any more, or the terminal is gone; at exit the interpreter must not complain about that.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return exits.ERROR


async def _main(
    options: Options,
    server: target.Target,
    prompt: str,
    config: Sampling | None,
    *,
    images: Sequence[Image],
    shown: Shown,
    pieces: socket,
    is_interactive: bool,
) -> int:
    if is_interactive:
        from llm_cli.repl import Repl  # noqa: PLC0415 - a one-shot answer needs no prompt_toolkit

        return await Repl(options, server, config, shown, images=images, scribe=pieces).run()
    from llm_cli.oneshot import OneShot  # noqa: PLC0415

    return await OneShot(options, server, prompt, config, shown, images=images, scribe=pieces).run()


def _warn(server: target.Target) -> None:
    if server.is_readable_on_the_way:
        _say(READABLE_ON_THE_WAY.format(url=server.url))
        warnings.simplefilter("ignore", ReadableTokenWarning)  # said once, in our own words


def _usage(text: str) -> int:
    _say(text)
    return exits.USAGE


def _say(text: str) -> None:
    print(f"llm: {clean_line(text)}", file=sys.stderr)
