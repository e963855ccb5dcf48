"""The front page in a real browser, before a real server process; and what other pages in that browser cannot do."""

import asyncio
import contextlib
import json
import re
import sys

import pytest

from llmws.access import HTTP_ROUTES
from llmws.places import page_path
from llmws.server.page import load_page
from llmws.store.tokens import TokenFile
from tests.support.browser import Browser
from tests.support.certificates import Authority
from tests.support.paths import ROOT
from tests.support.terminal import DEADLINE_S, Terminal, environment

SERVER = (sys.executable, str(ROOT / "tests/support/scripted_server.py"))


@pytest.fixture
async def browser(tmp_path):
    async with Browser(tmp_path / "profile") as browser:
        yield browser


@contextlib.asynccontextmanager
async def server(folder, *arguments):
    """A server on a terminal, once a model serves; and what the terminal shows."""
    # No browser is asked to be quick, on whatever machine.
    program = (*SERVER, str(folder), "--hello-timeout-s", "10", *arguments)
    async with Terminal(folder, program=program, PYTHONPATH=str(ROOT)) as terminal:
        await terminal.sees("ready\n")
        yield terminal


def address_on(terminal):
    """What the terminal shows to be opened in a browser."""
    (address,) = re.findall(r"https?://127\.0\.0\.1:\d+/#code=[\w-]+", terminal.text)
    return address


@pytest.fixture
async def address(tmp_path):
    async with server(tmp_path) as terminal:
        yield address_on(terminal)


class Pages:
    """A web server of somebody else's: what it serves by path, and what it was asked for."""

    def __init__(self):
        self.pages = {}
        self.asked = []
        self.origin = ""

    async def answer(self, reader, writer):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            path = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].decode()
            self.asked.append(path)
            html, policy = self.pages.get(path, ("", ""))
            kind = "text/javascript" if path.endswith(".js") else "text/html"
            head = f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Security-Policy: {policy}"
            writer.write(f"{head}\r\n\r\n{html}".encode())
            await writer.drain()
        writer.close()


@pytest.fixture
async def elsewhere():
    pages = Pages()
    async with await asyncio.start_server(pages.answer, "127.0.0.1", 0) as listener:
        pages.origin = f"http://evil.example:{listener.sockets[0].getsockname()[1]}"
        yield pages


FOREIGN = """<!doctype html><meta charset="utf-8"><script>
const { home, code, routes } = %s;
const attempt = async (path, options) => {
  try {
    const reply = await fetch(home + path.slice(1), options);
    return `${reply.type} ${reply.status} ${(await reply.text()).length}`;
  } catch { return "failed"; }
};
const socket = (path, offers) => new Promise((resolve) => {
  const opened = new WebSocket(home.replace("http", "ws") + path.slice(1), offers);
  opened.onopen = () => resolve("open");
  opened.onerror = () => resolve("failed");
});
const body = JSON.stringify({ code });
const exchange = (type, more) => ({ method: "POST", headers: { "content-type": type }, body, ...more });
const post = (type, more) => attempt("/v1/auth/exchange", exchange(type, more));
const everything = async () => {
  const results = {};
  for (const path of routes) results["GET " + path] = await attempt(path);
  results["GET / as a script or an image would"] = await attempt("/", { mode: "no-cors" });
  results["GET / with a cookie"] = await attempt("/", { credentials: "include" });
  results["POST json"] = await post("application/json");
  results["POST text"] = await post("text/plain");
  results["POST text unread"] = await post("text/plain", { mode: "no-cors" });
  results["socket"] = await socket("/v1/ws", []);
  results["socket at /"] = await socket("/", ["llmws.v1"]);
  results["socket with a made-up token"] = await socket("/v1/ws", ["llmws.v1", "llmws.bearer.eA"]);
  return results;
};
onmessage = ({ data }) => { window.results = data; };
everything().then((results) => parent.postMessage(results, "*"));
</script>"""
"""A page that tries all it can against the server at `home`, with a code that it should not know."""

SANDBOX = """<!doctype html><script>
onmessage = ({ data }) => { window.results = data; };
</script><iframe sandbox="allow-scripts" srcdoc="%s"></iframe>"""
"""The same page in a frame whose origin is null."""

RESULTS = """new Promise((resolve) => {
  const look = () => window.results ? resolve(window.results) : setTimeout(look, 10);
  look();
})"""


INJECTED = """<style>p { background: url(ORIGIN/style) }</style><link rel="stylesheet" href="ORIGIN/style.css">
<script>document.title = "ran"</script><script src="ORIGIN/script.js"></script><base href="ORIGIN/base">
<img src="ORIGIN/image" onerror="document.title = 'ran'"><iframe src="ORIGIN/frame"></iframe>
<form action="ORIGIN/form"></form><main>"""
"""What a mistake in the server, or in the page, could let a stranger put into it."""

DOINGS = """(async () => {
  const outcome = async (doing) => { try { return await doing(); } catch (error) { return error.name; } };
  return [
    await outcome(() => { document.querySelector("p").innerHTML = "<b>"; }),
    await outcome(() => fetch("ORIGIN/fetch").then(() => "sent")),
    await outcome(() => { document.forms[0].submit(); return document.title; }),
  ];
})()"""
"""What a script that ran all the same could try to get something out by."""


async def test_the_code_signs_in_once_and_is_gone_from_address_and_history(browser, address):
    home = address.partition("#")[0]
    tab = await browser.open(address)
    await tab.sees("Signed in")
    await tab.sees("llmws-guide serves")
    assert await tab.run("location.href") == home
    assert await tab.history() == ["about:blank", home]
    assert tab.requested() == {home, f"{home}v1/auth/exchange", f"{home.replace('http', 'ws')}v1/ws"}

    again = await browser.open(address)
    await again.sees("This code does not work any more")
    assert await again.history() == ["about:blank", home]
    assert again.statuses()[f"{home}v1/auth/exchange"] == 401


async def test_what_is_not_about_the_code_is_told_in_the_servers_words(browser, address):
    tab = await browser.open(address + "x" * 300)
    await tab.sees('Not signed in\n\nThe server says: the body must be {"code": "…"}.')


async def test_a_reload_stays_signed_in_and_a_new_tab_is_not(browser, address):
    tab = await browser.open(address)
    await tab.sees("Signed in")
    await tab.go(address.partition("#")[0])
    await tab.sees("Signed in")
    other = await browser.open(address.partition("#")[0])
    await other.sees("Not signed in\n\nllmws serve, started in a terminal, prints an address")
    assert await other.run("sessionStorage.length + localStorage.length + document.cookie.length") == 0


async def test_a_code_that_is_opened_in_the_same_tab_signs_in_too(browser, address):
    """Only the fragment changes then, which loads nothing anew."""
    home = address.partition("#")[0]
    tab = await browser.open(home)
    await tab.sees("Not signed in")
    await tab.run(f"location.href = {json.dumps(address)}")
    await tab.sees("Signed in\n")
    assert await tab.history() == ["about:blank", home, home]


async def test_a_token_that_is_revoked_signs_the_page_out(browser, address, tmp_path):
    tab = await browser.open(address)
    await tab.sees("Signed in")
    tokens = TokenFile(tmp_path / "state" / "tokens.json")
    for entry in tokens.list():
        tokens.revoke(entry.id)
    await tab.sees("The token is not valid any more")
    assert await tab.run("sessionStorage.length") == 0


async def test_where_no_token_is_asked_for_the_page_needs_none(browser, tmp_path):
    async with server(tmp_path, "--no-auth") as terminal:
        assert "code=" not in terminal.text
        ready = json.loads((tmp_path / "ready.json").read_bytes())
        tab = await browser.open(ready["url"])
        await tab.sees("Connected\n\nllmws-guide serves.")


async def test_over_tls_the_page_is_the_same(browser, tmp_path):
    certificate = Authority(tmp_path / "authority").issue("127.0.0.1")
    async with server(tmp_path, "--tls", str(certificate)) as terminal:
        address = address_on(terminal)
        tab = await browser.open(address, trust_all=True)
        await tab.sees("Signed in\n\nllmws-guide serves.")
        home = address.partition("#")[0]
        assert tab.requested() == {home, f"{home}v1/auth/exchange", f"{home.replace('https', 'wss')}v1/ws"}


@pytest.mark.parametrize("page", ["FOREIGN", "SANDBOX"])
async def test_a_page_of_another_origin_gets_nothing_and_uses_no_code_up(browser, address, elsewhere, page):
    """Neither as what it is, nor from a sandboxed frame: no route, no exchange, no socket."""
    known = {"home": address.partition("#")[0], "code": address.partition("#code=")[2], "routes": list(HTTP_ROUTES)}
    html = FOREIGN % json.dumps(known)
    framed = SANDBOX % html.replace("&", "&amp;").replace('"', "&quot;")
    elsewhere.pages["/"] = (html if page == "FOREIGN" else framed, "")
    tab = await browser.open(elsewhere.origin)
    results = await tab.run(RESULTS)
    assert results == dict.fromkeys(results, "failed")
    assert len(results) == len(HTTP_ROUTES) + 8
    home = await browser.open(address)
    await home.sees("Signed in")


async def test_a_name_that_was_rebound_to_this_machine_reaches_nothing(browser, address):
    """What the page of such a name asks has the server's own origin in the browser's eyes; the server sees the name."""
    rebound = address.partition("#")[0].replace("127.0.0.1", "rebound.example")
    code = json.dumps(json.dumps({"code": address.partition("#code=")[2]}))
    tab = await browser.open(rebound, bypass_csp=True)
    paths = json.dumps(list(HTTP_ROUTES))
    statuses = await tab.run(f"Promise.all({paths}.map(async (path) => (await fetch(path)).status))")
    assert statuses == [421] * len(HTTP_ROUTES)
    exchange = f"fetch('/v1/auth/exchange', {{ method: 'POST', body: {code} }}).then((reply) => reply.status)"
    assert await tab.run(exchange) == 421
    socket = (
        "new Promise((resolve) => { const it = new WebSocket(location.href.replace('http', 'ws') + 'v1/ws');"
        " it.onopen = () => resolve('open'); it.onerror = () => resolve('failed'); })"
    )
    assert await tab.run(socket) == "failed"
    home = await browser.open(address)
    await home.sees("Signed in")


async def test_what_gets_into_the_page_does_not_run_and_reaches_nobody(browser, elsewhere):
    """The page's own script runs under its policy, and nothing else; without the policy all of it would."""
    page = load_page(page_path())
    html = page.html.decode().replace("<main>", INJECTED.replace("ORIGIN", elsewhere.origin))
    elsewhere.pages = {
        "/with": (html, page.policy),
        "/without": (html, ""),
        "/script.js": ("document.title = 'ran'", ""),
    }
    tab = await browser.open(f"{elsewhere.origin}/with")
    await tab.sees("The server is not reachable")
    assert await tab.run("document.title") == "llmws"
    assert await tab.run(DOINGS.replace("ORIGIN", elsewhere.origin.replace("evil", "collector"))) == [
        "TypeError",
        "TypeError",
        "llmws",
    ]
    assert set(elsewhere.asked) == {"/with", "/v1/ws"}

    tab = await browser.open(f"{elsewhere.origin}/without")
    await tab.sees("The server is not reachable")
    assert await tab.run("document.title") == "ran"
    assert {"/style", "/style.css", "/script.js", "/image", "/frame"} <= set(elsewhere.asked)


async def test_the_code_is_shown_on_a_terminal_and_nowhere_else(tmp_path, address):
    """Not in what is redirected to a file or a journal, and not in the ready file."""
    assert address.partition("#code=")[2] not in (tmp_path / "ready.json").read_text()
    piped = tmp_path / "piped"
    piped.mkdir()
    process = await asyncio.create_subprocess_exec(
        *SERVER,
        str(piped),
        cwd=ROOT,
        env=environment(piped, PYTHONPATH=str(ROOT)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(DEADLINE_S):
        said = await process.stdout.readuntil(b"ready\n")
        process.terminate()
        said += (await process.communicate())[0]
    assert process.returncode == 0
    assert b"code=" not in said
