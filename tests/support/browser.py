"""A real browser, driven through the DevTools protocol.

As a program it only says whether there is one: `python -m tests.support.browser` exits 1, and says why, if not.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, Self

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
MISSING = (
    "these tests need a Chromium: apt-get install chromium-headless-shell (`make test` does it for root), or name one "
    "with BROWSER=/path/to/it"
)
DEADLINE_S = 20


def find() -> str | None:
    """The browser to run, where there is one."""
    named = os.environ.get("BROWSER")
    return next(filter(None, map(shutil.which, [named] if named else PROGRAMS)), None)


def program() -> str:
    """The browser to run; a machine without one fails, as nothing else sees what these tests see."""
    found = find()
    if found is None:
        pytest.fail(MISSING)
    return found


class Browser:
    """A browser with a profile of its own, in which every name under `.example` is this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._calls: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._tabs: dict[str, Tab] = {}

    async def __aenter__(self) -> Self:
        flags = ["--headless", "--remote-debugging-port=0", f"--user-data-dir={self._folder}", "--disable-gpu"]
        flags += ["--host-resolver-rules=MAP *.example 127.0.0.1", "--no-proxy-server", "--disable-dev-shm-usage"]
        # It shows nothing but the pages of these tests, and neither root nor every container can have its sandbox.
        flags.append("--no-sandbox")
        silent = asyncio.subprocess.DEVNULL
        self._process = await asyncio.create_subprocess_exec(
            program(), *flags, "about:blank", stdin=silent, stdout=silent, stderr=silent
        )
        try:
            self._socket: ClientConnection = await connect(await self._address(), compression=None, max_size=None)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            raise
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.call("Browser.close")  # with all of its processes
        async with asyncio.timeout(DEADLINE_S):
            await self._reader
            await self._process.wait()

    async def open(self, url: str, *, bypass_csp: bool = False, trust_all: bool = False) -> Tab:
        """A new tab that shows `url`.

        Args:
            url: where it begins.
            bypass_csp: whether no policy holds its scripts back.
            trust_all: whether every certificate is good enough.
        """
        target = await self.call("Target.createTarget", {"url": "about:blank"})
        attached = await self.call("Target.attachToTarget", {"targetId": target["targetId"], "flatten": True})
        tab = Tab(self, attached["sessionId"])
        self._tabs[attached["sessionId"]] = tab
        for domain in ("Page", "Network", "Runtime"):
            await tab.call(f"{domain}.enable")
        await tab.call("Page.setBypassCSP", {"enabled": bypass_csp})
        await tab.call("Security.setIgnoreCertificateErrors", {"ignore": trust_all})
        await tab.go(url)
        return tab

    async def call(self, method: str, arguments: dict[str, Any] | None = None, tab: str | None = None) -> Any:
        """Calls a method of the protocol and gives its result."""
        number = len(self._calls)
        reply = self._calls[number] = asyncio.get_running_loop().create_future()
        session = {} if tab is None else {"sessionId": tab}
        await self._socket.send(json.dumps({"id": number, "method": method, "params": arguments or {}} | session))
        async with asyncio.timeout(DEADLINE_S):
            answer = await reply
        assert "error" not in answer, (method, answer)
        return answer["result"]

    async def _address(self) -> str:
        """Where it listens, once it has written that down."""
        file = self._folder / "DevToolsActivePort"
        async with asyncio.timeout(DEADLINE_S):
            while not file.exists() or file.read_text().count("\n") != 1:
                assert self._process.returncode is None, f"the browser ended with status {self._process.returncode}"
                await asyncio.sleep(0.02)
        port, path = file.read_text().split("\n")
        return f"ws://127.0.0.1:{port}{path}"

    async def _read(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                message = json.loads(await self._socket.recv())
                if "id" in message:
                    self._calls[message["id"]].set_result(message)
                elif (tab := self._tabs.get(message.get("sessionId", ""))) is not None:
                    tab.events.append((message["method"], message["params"]))
                    tab.happened.set()


class Tab:
    """One page. `events`: what the protocol told of it, oldest first."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.happened = asyncio.Event()

    async def call(self, method: str, arguments: dict[str, Any] | None = None) -> Any:
        return await self._browser.call(method, arguments, self._session)

    async def go(self, url: str) -> None:
        """Shows another address, and waits until it is loaded."""
        seen = len(self.events)
        await self.call("Page.navigate", {"url": url})
        async with asyncio.timeout(DEADLINE_S):
            while not any(name == "Page.loadEventFired" for name, _ in self.events[seen:]):
                self.happened.clear()
                await self.happened.wait()

    async def run(self, script: str) -> Any:
        """The value of an expression, or of the promise that it is."""
        arguments = {"expression": script, "awaitPromise": True, "returnByValue": True}
        result = await self.call("Runtime.evaluate", arguments)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    async def sees(self, text: str) -> None:
        """Waits until the page shows the text."""
        shown = ""
        try:
            async with asyncio.timeout(DEADLINE_S):
                while text not in shown:
                    await asyncio.sleep(0.02)
                    shown = await self.run("document.body.innerText")
        except TimeoutError:
            raise AssertionError(f"{text!r} was not seen in {shown!r}") from None

    async def history(self) -> list[str]:
        """The addresses that Back and Forward lead to, and the present one."""
        return [entry["url"] for entry in (await self.call("Page.getNavigationHistory"))["entries"]]

    def requested(self) -> set[str]:
        """Every address that the page asked for, sockets included."""
        asked = {
            parameters["request"]["url"] for name, parameters in self.events if name == "Network.requestWillBeSent"
        }
        return asked | {parameters["url"] for name, parameters in self.events if name == "Network.webSocketCreated"}

    def statuses(self) -> dict[str, int]:
        """The status of every answer, by address."""
        answers = [parameters["response"] for name, parameters in self.events if name == "Network.responseReceived"]
        return {answer["url"]: answer["status"] for answer in answers}


if __name__ == "__main__":
    sys.exit(MISSING if find() is None else 0)
