"""`llm` as a process with pipes: what it prints, where, and what it exits with."""

import asyncio
import json
import os
import shlex
import signal

import pytest

from llm_cli.main import MAX_INPUT_BYTES
from llmws.client import image_file
from llmws.protocol import messages as m
from tests.integration.client.fake_server import FakeServer, prompt_of
from tests.support.terminal import Terminal, command, environment, run

HOSTILE = ("red \x1b[31m", "bell\x07 ", "title \x9d0;x\x9c", "\u202edrow", "\rover\r\n", "tab\tend")
WORDS = tuple(f"word{n} " for n in range(60))


@pytest.fixture
async def server():
    async with FakeServer({"hostile": HOSTILE, "words": WORDS, "long": ("x" * 5000, "y" * 5000)}) as server:
        yield server


async def test_a_prompt_is_answered_on_standard_output(server, tmp_path):
    assert await run(tmp_path, "--url", server.url, "hi", "there") == (0, "Hello\n", "")
    assert prompt_of(server.of_type(m.Inference)[0]) == "hi there"


async def test_piped_input_stands_before_the_question(server, tmp_path):
    await run(tmp_path, "--url", server.url, "summarise", stdin=b"some notes\n")
    assert prompt_of(server.of_type(m.Inference)[0]) == "some notes\n\nsummarise"


async def test_piped_input_alone_is_a_prompt(server, tmp_path):
    await run(tmp_path, "--url", server.url, stdin=b"hi")
    assert prompt_of(server.of_type(m.Inference)[0]) == "hi"


async def test_options_reach_the_request(server, tmp_path):
    flags = ["-m", "big", "-s", "be brief", "--temperature", "0", "--max-tokens", "9", "--seed", "3", "--stop", "\n"]
    await run(tmp_path, "--url", server.url, *flags, "hi")
    (inference,) = server.of_type(m.Inference)
    assert inference.model == "big"
    assert inference.prompt == m.Prompt(user="hi", system="be brief")
    assert inference.config == m.Sampling(temperature=0, max_new_tokens=9, seed=3, stop=["\n"])


async def test_an_image_goes_with_the_question(server, tmp_path):
    file = tmp_path / "picture"
    file.write_bytes(b"\x89PNG\r\n\x1a\n...")
    await run(tmp_path, "--url", server.url, "--image", str(file), "what is it?")
    (inference,) = server.of_type(m.Inference)
    assert inference.prompt == m.Prompt(user="what is it?", images=[image_file(file)])


async def test_an_image_may_be_all_of_the_question(server, tmp_path):
    file = tmp_path / "picture"
    file.write_bytes(b"\x89PNG\r\n\x1a\n...")
    status, *_ = await run(tmp_path, "--url", server.url, "--image", str(file))
    (inference,) = server.of_type(m.Inference)
    assert (status, inference.prompt) == (0, m.Prompt(user="", images=[image_file(file)]))


async def test_the_name_of_a_file_is_shown_without_control_characters(server, tmp_path):
    status, _, errors = await run(tmp_path, "--url", server.url, "--image", "\x1b[31mred.png", "what is it?")
    assert (status, errors) == (2, "llm: [31mred.png: there is no such file\n")


@pytest.mark.parametrize(
    ("content", "why"),
    [(None, "there is no such file"), (b"<svg/>", "not an image that can be sent; PNG, JPEG, WebP and GIF are")],
)
async def test_what_is_no_image_is_said_before_anything_is_sent(content, why, server, tmp_path):
    file = tmp_path / "picture.png"
    if content is not None:
        file.write_bytes(content)
    status, _, errors = await run(tmp_path, "--url", server.url, "--image", str(file), "what is it?")
    assert (status, errors) == (2, f"llm: {file}: {why}\n")


async def test_json_lines_are_the_events_in_ascii(server, tmp_path):
    status, out, _ = await run(tmp_path, "--url", server.url, "--json", "hostile")
    lines = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [line["type"] for line in lines] == ["session", "start", *["token"] * 6, "done"]
    assert "".join(line["data"] for line in lines if line["type"] == "token") == "".join(HOSTILE)
    assert out.isascii()
    assert not any(ord(char) < 32 for char in out.replace("\n", ""))


async def test_no_control_character_of_the_model_is_printed(server, tmp_path):
    _, out, _ = await run(tmp_path, "--url", server.url, "hostile", FORCE_COLOR="1")
    assert out == "red [31mbell title 0;xdrowover\ntab\tend\n"


async def test_a_missing_server_is_status_3(tmp_path):
    status, out, err = await run(tmp_path, "--url", "ws://127.0.0.1:1", "--wait", "0.2", "hi")
    assert (status, out) == (3, "")
    assert "could not be reached within 0.2 s: Connection refused" in err


async def test_a_wrong_token_is_status_4(server, tmp_path):
    server.token = "right"
    status, out, err = await run(tmp_path, "--url", server.url, "hi", "--token", "wrong")
    assert (status, out) == (4, "")
    assert "the token is not valid" in err


async def test_the_token_of_a_file_is_used(server, tmp_path):
    server.token = "right"
    (tmp_path / "token").write_text("right\n")
    status, _, _ = await run(tmp_path, "--url", server.url, "hi", "--token-file", str(tmp_path / "token"))
    assert status == 0


async def test_the_local_server_is_found_with_its_token(server, tmp_path):
    server.token = "right"
    (tmp_path / "token").write_text("right\n")
    ready = tmp_path / "llmws" / "servers" / "1.json"
    ready.parent.mkdir(parents=True)
    port = int(server.url.split(":")[2].split("/")[0])
    content = {"url": "", "ws_url": server.url, "port": port, "pid": os.getpid(), "token_file": str(tmp_path / "token")}
    ready.write_text(json.dumps(content))
    ready.chmod(0o600)
    assert (await run(tmp_path, "hi"))[:2] == (0, "Hello\n")
    assert (await run(tmp_path, "--port", str(port), "hi"))[:2] == (0, "Hello\n")


async def test_a_failed_generation_is_status_5(server, tmp_path):
    server.fail_with = "model_failed"
    assert await run(tmp_path, "--url", server.url, "hi") == (5, "Hello\n", "llm: as asked (model_failed)\n")


async def test_a_refused_request_is_a_json_line_too(server, tmp_path):
    server.reject_with = [m.Error(code="bad_request", message="no", retryable=False)]
    status, out, err = await run(tmp_path, "--url", server.url, "--json", "hi")
    last = json.loads(out.splitlines()[-1])
    assert (status, err) == (5, "llm: no (bad_request)\n")
    assert (last["type"], last["code"]) == ("error", "bad_request")


async def shell(state, line: str) -> tuple[int, bytes, bytes]:
    """Runs a line of shell in which `llm` stands for the command."""
    process = await asyncio.create_subprocess_exec(
        "sh",
        "-c",
        line.replace("llm", shlex.join(command([]))),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(state),
    )
    async with asyncio.timeout(20):
        out, err = await process.communicate()
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("redirection", "result"),
    [
        ("<&-", (0, b"Hello\n", b"")),
        ("2>&-", (0, b"Hello\n", b"")),
        (">&-", (1, b"", b"llm: standard output is closed\n")),
        (">/dev/full", (1, b"", b"llm: standard output: No space left on device\n")),
    ],
)
async def test_standard_streams_that_are_closed_or_full(server, tmp_path, redirection, result):
    assert await shell(tmp_path, f"llm --url {server.url} hi {redirection}") == result


async def test_input_keeps_its_indentation_and_has_a_limit(server, tmp_path):
    await run(tmp_path, "--url", server.url, stdin=b"\n  indented\n")
    assert prompt_of(server.of_type(m.Inference)[0]) == "  indented"
    status, _, err = await run(tmp_path, "--url", server.url, stdin=b"x" * (MAX_INPUT_BYTES + 1))
    assert (status, err) == (2, "llm: standard input is longer than 1048576 bytes\n")


async def test_a_person_is_told_that_standard_input_is_waited_for(server, tmp_path):
    """On a terminal that shows errors, while another program that says nothing is in the pipe."""
    script = "sleep 30 | " + shlex.join(command(["--url", server.url, "hi"]))
    async with Terminal(tmp_path, program=["sh", "-c", script]) as terminal:
        await terminal.sees("llm: waiting for standard input")


async def test_nothing_to_ask_is_status_2(tmp_path):
    status, _, err = await run(tmp_path)
    assert (status, err) == (2, "llm: nothing to ask: give a prompt, or pipe one in\n")


@pytest.mark.parametrize("flags", [["--session", "../x"], ["--port", "0"], ["--url", "x", "--port", "1"], ["--nope"]])
async def test_wrong_usage_is_status_2(tmp_path, flags):
    assert (await run(tmp_path, *flags, "hi"))[0] == 2


async def test_a_value_out_of_range_is_status_2(server, tmp_path):
    status, _, err = await run(tmp_path, "--url", server.url, "--temperature", "9", "hi")
    assert (status, err) == (2, "llm: temperature: Expected `float` <= 2.0\n")


async def test_a_loading_server_is_waited_for(server, tmp_path):
    server.reject_with = [m.Error(code="model_loading", message="loading", retryable=True, retry_after_ms=1)] * 3
    status, out, err = await run(tmp_path, "--url", server.url, "hi")
    assert (status, out, err) == (0, "Hello\n", "llm: loading; trying again\n")


async def test_continue_asks_in_the_session_used_last(server, tmp_path):
    await run(tmp_path, "--url", server.url, "hi")
    assert (await run(tmp_path, "--continue", "more"))[:2] == (0, "Hello\n")
    assert [prompt_of(each) for each in server.session().requests.values()] == ["hi", "more"]


async def test_an_answer_that_was_read_elsewhere_is_shown_from_the_conversation(server, tmp_path):
    await run(tmp_path, "--url", server.url, "hi")
    server.reset_reason = "below_floor"
    status, out, err = await run(tmp_path, "--url", server.url, "--session", server.session().id)
    assert (status, out) == (0, "Hello\n")
    assert err == "llm: what was missed here is kept in the conversation alone; in the chat, /history shows it\n"


async def test_continue_without_a_session_is_status_2(tmp_path):
    assert (await run(tmp_path, "--continue", "hi"))[0] == 2


async def test_cuts_are_not_seen_on_standard_output(server, tmp_path):
    server.cut_after = set(range(2, 60, 7))
    status, out, err = await run(tmp_path, "--url", server.url, "words")
    assert (status, out) == (0, "".join(WORDS) + "\n")
    assert "connecting again" in err


class Killable:
    """`llm` with its output in a pipe that the test reads."""

    def __init__(self, state, *arguments):
        self.state, self.arguments, self.out = state, arguments, b""

    async def __aenter__(self):
        self.process = await asyncio.create_subprocess_exec(
            *command(self.arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment(self.state),
        )
        return self

    async def __aexit__(self, *_):
        if self.process.returncode is None:
            self.process.kill()
        await self.process.communicate()

    async def reads(self, text: bytes):
        async with asyncio.timeout(20):
            while text not in self.out:
                self.out += await self.process.stdout.read(65536)

    async def end(self):
        async with asyncio.timeout(20):
            self.out += await self.process.stdout.read()
            return await self.process.wait()


@pytest.mark.parametrize("killed_at", [0, 1, 17, 58])
async def test_killed_in_the_middle_it_prints_exactly_the_missing_text(server, tmp_path, killed_at):
    server.held = True
    async with Killable(tmp_path, "--url", server.url, "words") as first:
        server.step(killed_at + 1)
        await first.reads(WORDS[killed_at].encode())
        first.process.send_signal(signal.SIGKILL)
        await first.process.wait()
    server.step(len(WORDS))
    (session_id,) = server.sessions
    status, rest, _ = await run(tmp_path, "--session", session_id)
    assert status == 0
    assert first.out.decode() + rest == "".join(WORDS) + "\n"


async def test_killed_in_the_middle_of_one_long_event_it_goes_on_inside_it(server, tmp_path):
    """With nobody reading, the pipe takes a part of the event; what it took is not printed again."""
    server.answers["huge"] = ("0123456789" * 20000,)
    async with Killable(tmp_path, "--url", server.url, "huge") as first:
        await first.reads(b"01234")
        async with asyncio.timeout(20):
            while len(first.out) < 100_000:
                first.out += await first.process.stdout.read(4096)
        first.process.send_signal(signal.SIGKILL)
        first.out += await first.process.stdout.read()
        await first.process.wait()
    (session_id,) = server.sessions
    _, rest, _ = await run(tmp_path, "--session", session_id)
    assert first.out.decode() + rest == "0123456789" * 20000 + "\n"


async def test_nothing_of_an_answer_is_written_to_disk(server, tmp_path):
    await run(tmp_path, "--url", server.url, "words")
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"session_id" in written
    assert b"word" not in written


async def test_ctrl_c_cancels_the_answer_on_the_server(server, tmp_path):
    server.held = True
    async with Killable(tmp_path, "--url", server.url, "words") as llm:
        server.step(2)
        await llm.reads(b"word1 ")
        llm.process.send_signal(signal.SIGINT)
        assert await llm.end() == 130
    assert [message.request_id for message in server.of_type(m.Cancel)] == list(server.session().requests)
    assert llm.out == b"word0 word1 \n"


async def test_told_to_end_it_deletes_a_temporary_session_first(server, tmp_path):
    server.held = True
    async with Killable(tmp_path, "--url", server.url, "--temporary", "words") as llm:
        server.step(2)
        await llm.reads(b"word1 ")
        llm.process.send_signal(signal.SIGTERM)
        assert await llm.end() == 128 + signal.SIGTERM
    assert server.sessions == {}


async def test_a_reader_that_goes_away_ends_it_quietly(server, tmp_path):
    async with Killable(tmp_path, "--url", server.url, "long") as llm:
        llm.process._transport.get_pipe_transport(1).close()
        async with asyncio.timeout(20):
            assert await llm.process.wait() == 1
            assert await llm.process.stderr.read() == b""


async def test_a_full_disk_of_the_server_is_said_and_ends_the_call(server, tmp_path):
    server.is_disk_full = True
    fault = "the server's disk failed: full"
    status = await run(tmp_path, "--url", server.url, "--wait", "0.3", "hi")
    assert status == (5, "", f"llm: {fault}; connecting again\nllm: {fault}\n")


async def test_an_unknown_session_is_said_and_replaced(server, tmp_path):
    unknown = "00000000-0000-4000-8000-000000000000"
    status, out, err = await run(tmp_path, "--url", server.url, "--session", unknown, "hi")
    assert (status, out) == (0, "Hello\n")
    assert err == f"llm: the server no longer has this session; this is a new one: {server.session().id}\n"
