"""The main job, shown: ask, cut the line in mid-answer, kill the server in mid-answer, and lose nothing.

Starts a server of its own with the built-in model, on a free port and with temporary state. Exits 0 only if every
joined text is whole. On a terminal it leaves you in the chat afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from llmws.client import Client, ClientError
from llmws.protocol import messages as m

BIN = Path(sys.executable).parent
MODEL = "llmws-guide"
QUESTION = "How does llmws keep my answer when the connection drops?"
CONTEXT = [{"role": "user", "content": QUESTION}]
SEEDED = {"temperature": 0.7, "seed": 7}
FAULT_AT_TOKEN = 10
ATTEMPTS = 5
READY_TIMEOUT_S = 120
SHOW_TIMEOUT_S = 240


class DemoError(Exception):
    """A promise did not hold."""


class Server:
    """A real `llmws serve` process that can be killed and started again on the same state and port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self.environment = {**os.environ, "XDG_STATE_HOME": str(folder / "xdg")}

    def start(self) -> dict[str, str]:
        """Starts the process and waits until it listens; returns its ready object."""
        ready = self._folder / "ready.json"
        ready.unlink(missing_ok=True)
        command = [BIN / "llmws", "serve", "--model", MODEL, "--port", str(self._port), "--ready-file", ready]
        command += ["--state-dir", self._folder / "state", "--config", self._folder / "config.json"]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        while not ready.exists():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                raise DemoError(f"the server did not start:\n{self.log_tail()}")
            time.sleep(0.02)
        found = json.loads(ready.read_bytes())
        self._port = found["port"]
        return dict(found)

    def kill(self) -> None:
        """`kill -9`."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def kill_and_start(self) -> None:
        """Kills the server and starts it again on the same state and port."""
        self.kill()
        say("   killed; starting it again on the same state.")
        self.start()

    def stop(self) -> None:
        """SIGTERM, and patience."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def log_tail(self) -> str:
        """The end of the server's log."""
        return "\n".join((self._folder / "server.log").read_text().splitlines()[-15:])


class Line:
    """A relay between client and server, so that there is a line to cut."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._writers: set[asyncio.StreamWriter] = set()
        self.cuts = 0

    async def open(self) -> str:
        """Starts relaying; returns the address for the client."""
        self._listener = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        return f"ws://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        """Cuts every connection, without a word to either side's program."""
        self.cuts += 1
        for writer in self._writers:
            writer.transport.abort()

    def close(self) -> None:
        """Stops relaying."""
        self._listener.close()
        self.cut()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, far_writer}
        self._writers |= ends
        await asyncio.gather(_pour(reader, far_writer), _pour(far_reader, writer))
        self._writers -= ends


async def _pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


class Answer(NamedTuple):
    """What came of a question."""

    text: str
    was_resumed: bool


async def ask(client: Client, fault: Callable[[], None], **sampling: float) -> Answer:
    """Asks, and lets `fault` happen in the middle of the answer."""
    text, was_resumed = "", False
    tokens_until_fault = FAULT_AT_TOKEN
    async for event in client.generate(messages=CONTEXT, **sampling):
        match event:
            case m.Token(data=data):
                text += data
                tokens_until_fault -= 1
                if tokens_until_fault == 0:
                    fault()
            case m.Log(code="resumed_after_restart"):
                was_resumed = True
            case m.Done(total_tokens=total):
                say(f"   the answer is whole: {total} tokens, each exactly once")
    return Answer(text, was_resumed)


async def show(server: Server, ready: dict[str, str], token: str) -> None:
    """Every promise in turn. Raises DemoError at the first that does not hold."""
    async with Client(ready["ws_url"], token) as client:
        say(f"2. Undisturbed, for comparison: {QUESTION}")
        greedy = (await client.generate(messages=CONTEXT, temperature=0)).text
        sampled = (await client.generate(messages=CONTEXT, **SEEDED)).text
        say(textwrap.indent(textwrap.fill(greedy, 100), "   > "))
    line = Line(int(ready["port"]))
    async with Client(await line.open(), token) as client:
        say(f"3. The same in session {client.session_id}; the line is cut after {FAULT_AT_TOKEN} pieces of the answer.")
        answer = await ask(client, line.cut, temperature=0)
        expect(line.cuts == 1, otherwise="the answer was too short to be cut")
        expect(answer.text == greedy, otherwise="the text with a cut differs from the one without")
        say("   reconnected by the session's id; the joined text equals the undisturbed one.")
        say(f"4. Sampled with a seed; the server is killed with -9 after {FAULT_AT_TOKEN} pieces of the answer.")
        for _ in range(ATTEMPTS):
            answer = await ask(client, server.kill_and_start, **SEEDED)
            expect(answer.text == sampled, otherwise="the text with a kill differs from the one without")
            if answer.was_resumed:
                break
            say("   this machine is fast: the answer was complete before the kill. Again.")
        expect(answer.was_resumed, otherwise="no kill hit an answer in the middle")
        say("   the new process went on from the encrypted log; the joined text equals the undisturbed one.")
    line.close()


def say(text: str) -> None:
    """A line of the story."""
    print(text, flush=True)


def expect(holds: object, *, otherwise: str) -> None:
    """Raises DemoError unless it holds."""
    if not holds:
        raise DemoError(otherwise)


def main() -> int:
    """Runs the demo; 0 if everything held."""
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="llmws-demo-") as name:
        server = Server(Path(name))
        try:
            ready = server.start()
            say(f"0. The server listens at {ready['url']} and loads {MODEL}.")
            say('1. llm "What is llmws?"')
            subprocess.run([BIN / "llm", "What is llmws?"], env=server.environment, check=True)
            token = Path(ready["token_file"]).read_text().strip()
            asyncio.run(asyncio.wait_for(show(server, ready, token), SHOW_TIMEOUT_S))
            say(f"Everything held, in {time.monotonic() - began_s:.0f} s: nothing lost, nothing twice.")
            if sys.stdin.isatty() and sys.stdout.isatty():
                say("\nYour turn: ask it about llmws. Ctrl-D leaves.\n")
                subprocess.run([BIN / "llm", "--temporary"], env=server.environment, check=False)
        except (DemoError, ClientError, TimeoutError, subprocess.CalledProcessError) as error:
            print(f"This did not hold: {error or 'it took too long'}\n{server.log_tail()}", file=sys.stderr)
            return 1
        finally:
            server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
