"""The chat on a real terminal: typed keys in, a screen out."""

import asyncio
import signal

import pytest

from llmws.client import image_file
from llmws.protocol import ErrorCode
from llmws.protocol import messages as m
from tests.integration.client.fake_server import FakeServer, prompt_of
from tests.support.terminal import Terminal

WORDS = tuple(f"word{n} " for n in range(60))


@pytest.fixture
async def server():
    async with FakeServer({"words": WORDS, "code": ("# Title\n", "```\nx = 1\n```\n", "\x1b[2Jend")}) as server:
        yield server


async def test_a_question_is_typed_and_answered(server, tmp_path):
    async with Terminal(tmp_path, "--url", server.url) as terminal:
        await terminal.sees("model scripted")
        terminal.type("hi\r")
        await terminal.sees("10 tokens/s")
        assert await terminal.leave() == 0
    assert f"to come back: llm --session {server.session().id} --url {server.url}" in terminal.text


async def test_an_image_goes_with_the_next_question_alone(server, tmp_path):
    file = tmp_path / "my picture.gif"
    file.write_bytes(b"GIF89a...")
    async with Terminal(tmp_path, "--url", server.url) as terminal:
        await terminal.sees("model scripted")
        terminal.type(f"/image {file}\r")
        await terminal.sees("1 image goes with the next question")
        terminal.type("hi\r")
        await terminal.sees("10 tokens/s")
        terminal.type("hi again\r")
        await terminal.sees("Hello\n", times=2)
    with_image, without = server.of_type(m.Inference)
    assert with_image.prompt == m.Prompt(user="hi", images=[image_file(file)])
    assert without.prompt == "hi again"


async def test_images_of_a_question_that_is_rejected_go_with_the_next_one(server, tmp_path):
    file = tmp_path / "a.gif"
    file.write_bytes(b"GIF89a...")
    server.reject_with = [m.Error(code=ErrorCode.BAD_REQUEST, message="not now", retryable=False)]
    async with Terminal(tmp_path, "--url", server.url) as terminal:
        await terminal.sees("model scripted")
        terminal.type(f"/image {file}\r")
        await terminal.sees("1 image goes with the next question")
        terminal.type("hi\r")
        await terminal.sees("not now")
        terminal.type("hi again\r")
        await terminal.sees("10 tokens/s")
    assert server.of_type(m.Inference)[-1].prompt == m.Prompt(user="hi again", images=[image_file(file)])


async def test_alt_enter_and_pasted_lines_stay_one_prompt(server, tmp_path):
    async with Terminal(tmp_path, "--url", server.url) as terminal:
        await terminal.sees("model scripted")
        terminal.type("one\x1b\rtwo \x1b[200~three\nfour\x1b[201~\r")
        await terminal.sees("Hello\n")
    assert [prompt_of(each) for each in server.of_type(m.Inference)] == ["one\ntwo three\nfour"]


async def test_ctrl_c_cancels_the_answer_and_the_chat_goes_on(server, tmp_path):
    server.held = True
    async with Terminal(tmp_path, "--url", server.url) as terminal:
        await terminal.sees("model scripted")
        terminal.type("words\r")
        server.step(3)
        await terminal.sees("word2 ")
        terminal.type("\x03")
        await terminal.sees("word2 ^C\n")
        server.held = False
        terminal.type("hi\r")
        await terminal.sees("Hello\n")
    assert len(server.of_type(m.Cancel)) == 1


async def test_a_second_ctrl_c_leaves(server, tmp_path):
    async with Terminal(tmp_path, "--url", server.url) as terminal:
        await terminal.sees("model scripted")
        terminal.type("\x03")
        await terminal.sees("Ctrl-C again")
        terminal.type("\x03")
        assert await terminal.end() == 130


async def test_killed_in_the_middle_the_chat_prints_exactly_the_missing_text(server, tmp_path):
    server.held = True
    async with Terminal(tmp_path, "--url", server.url) as first:
        await first.sees("model scripted")
        first.type("words\r")
        server.step(17)
        await first.sees(WORDS[16])
        first.kill()
        await first.end()
    server.step(len(WORDS))
    async with Terminal(tmp_path, "--session", server.session().id) as second:
        await second.sees(WORDS[-1] + "\n")
        await second.sees("model scripted")
        second.type("/quit\r")
        assert await second.end() == 0
    shown = first.text[first.text.index("word0 ") :] + second.text[: second.text.index("\n") + 1]
    assert shown == "".join(WORDS) + "\n"


async def test_markdown_is_coloured_and_control_characters_are_not_printed(server, tmp_path):
    async with Terminal(tmp_path, "--url", server.url, "code") as terminal:
        assert await terminal.end() == 0
    assert terminal.raw.decode().replace("\r", "") == (
        "\x1b[1;36m# Title\x1b[0m\n\x1b[2m```\x1b[0m\n\x1b[33mx = 1\x1b[0m\n\x1b[2m```\x1b[0m\n[2Jend\n"
    )


async def test_no_color_means_no_escape(server, tmp_path):
    async with Terminal(tmp_path, "--url", server.url, "code", NO_COLOR="1") as terminal:
        assert await terminal.end() == 0
    assert b"\x1b" not in terminal.raw


async def test_the_prompt_is_there_before_the_server_is(server, tmp_path):
    await server.stop()
    async with Terminal(tmp_path, "--url", server.url) as terminal:
        await terminal.sees("trying again")
        await server.start()
        await terminal.sees("model scripted")


async def missed(server: FakeServer, state) -> str:
    """Leaves a session in which an answer was given that nobody has read; its id. The server is down then."""
    async with Terminal(state, "--url", server.url) as terminal:
        await terminal.sees("model scripted")
        server.held = True
        terminal.type("words\r")
        server.step(1)
        await terminal.sees("word0 ")
        terminal.kill()
        await terminal.end()
    server.held = False
    server.step(1)
    async with asyncio.timeout(10):
        while server.session().open:  # noqa: ASYNC110
            await asyncio.sleep(0)
    await server.stop()
    return server.session().id


async def test_with_the_server_down_the_prompt_is_there_and_the_missed_answer_comes_later(server, tmp_path):
    session_id = await missed(server, tmp_path)
    async with Terminal(tmp_path, "--session", session_id) as terminal:
        await terminal.sees("not connected (Connection refused); trying again")
        await terminal.sees("not connected: Connection refused")
        await server.start()
        await terminal.sees("word1 word2 ")
        await terminal.sees(WORDS[-1] + "\n")
        terminal.type("hi\r")
        await terminal.sees("Hello\n")
    assert terminal.text.index(WORDS[-1]) < terminal.text.index("Hello\n")


async def test_a_question_that_waits_for_the_server_comes_after_the_missed_answer(server, tmp_path):
    session_id = await missed(server, tmp_path)
    async with Terminal(tmp_path, "--session", session_id) as terminal:
        await terminal.sees("not connected: Connection refused")
        terminal.type("hi\r")
        await terminal.sees("the question is sent as soon as that changes")
        await server.start()
        await terminal.sees("Hello\n")
    assert terminal.text.index(WORDS[-1]) < terminal.text.index("Hello\n")


async def test_what_is_being_typed_is_kept_when_the_server_comes_back(server, tmp_path):
    session_id = await missed(server, tmp_path)
    async with Terminal(tmp_path, "--session", session_id) as terminal:
        await terminal.sees("not connected: Connection refused")
        terminal.type("h")
        await server.start()
        await terminal.sees("model scripted")
        terminal.type("i\r")
        await terminal.sees("Hello\n")
    assert terminal.text.index(WORDS[-1]) < terminal.text.index("Hello\n")
    assert prompt_of(server.of_type(m.Inference)[-1]) == "hi"


async def test_ctrl_c_takes_back_a_question_that_waits_for_the_server(server, tmp_path):
    await server.stop()
    async with Terminal(tmp_path, "--url", server.url) as terminal:
        await terminal.sees("trying again")
        terminal.type("words\r")
        await terminal.sees("the question is sent as soon as that changes")
        terminal.type("\x03")
        await terminal.sees("taken back")
        await server.start()
        await terminal.sees("model scripted")
        terminal.type("hi\r")
        await terminal.sees("Hello\n")
    assert [prompt_of(each) for each in server.of_type(m.Inference)] == ["hi"]


async def test_a_session_that_no_server_had_is_not_offered_again(server, tmp_path):
    await server.stop()
    async with Terminal(tmp_path, "--url", server.url) as terminal:
        await terminal.sees("trying again")
        terminal.type("words\r")
        await terminal.sees("as soon as that changes")
        terminal.type("\x03")
        await terminal.sees("taken back")
        terminal.type("/new\r")
        terminal.type("/quit\r")
        assert await terminal.end() == 0
    assert "to come back" not in terminal.text


async def test_ctrl_c_while_the_connection_is_lost_ends_the_answer_later(server, tmp_path):
    server.held = True
    async with Terminal(tmp_path, "--url", server.url) as terminal:
        await terminal.sees("model scripted")
        terminal.type("words\r")
        server.step(1)
        await terminal.sees("word0 ")
        await server.stop()
        await terminal.sees("connecting again")
        terminal.type("\x03")
        await terminal.sees("the answer is ended as soon as that changes")
        await server.start()
        await terminal.sees("connected again")
        await terminal.sees("10 tokens/s")
    assert len(server.of_type(m.Cancel)) == 1


async def test_a_restart_of_the_server_is_a_short_notice(server, tmp_path):
    async with Terminal(tmp_path, "--url", server.url) as terminal:
        await terminal.sees("model scripted")
        await server.restart()
        await terminal.sees("connected again")
        terminal.type("hi\r")
        await terminal.sees("Hello\n")


async def test_a_wrong_token_ends_the_chat_with_status_4(server, tmp_path):
    server.token = "right"
    async with Terminal(tmp_path, "--url", server.url, "--token", "wrong") as terminal:
        assert await terminal.end() == 4
    assert "the token is not valid" in terminal.text


async def test_commands(server, tmp_path):
    async with Terminal(tmp_path, "--url", server.url) as terminal:
        await terminal.sees("model scripted")
        for line, answer in [
            ("/help", "list the commands"),
            ("/modles", "did you mean /models?"),
            ("/models", "default  scripted"),
            ("/model", "the server's present one (scripted)"),
            ("/config temperature=0.5 top_k=3", "top_k        3"),
            ("/config temperature=9", "temperature: Expected"),
            ("/system be brief", "system message: be brief"),
            ("/resources", "2 CPUs"),
            ("/status", "round trip"),
            ("/history", "nothing was said"),
            ("/cancel", "nothing runs"),
            ("/delete x", "there is no model x"),
            ("/delete scripted", "delete scripted (1.0 MB)? y/N"),
            ("n", "nothing was deleted"),
            ("/delete scripted", "delete scripted (1.0 MB)? y/N"),
            ("y", "there is no such model on the server; in the chat, /models lists"),
            ("/delete", "/delete needs more: /delete NAME"),
            ("/model scriptd", "there is no model scriptd; did you mean scripted?"),
            ("/config temprature=3", "there is no setting temprature; did you mean temperature?"),
            ("/config max_new_tokens=1e3", "1000"),
            ("/history abc", "give a number"),
            ("/switch nope", "there is no model nope; /models lists them"),
            ("/switch var/models/other", "the model is now other, with 64 tokens"),
            ("/session", "to come back: llm --session"),
        ]:
            terminal.type(line + "\r")
            await terminal.sees(answer)
        terminal.type("hi\r")
        await terminal.sees("Hello\n")
        terminal.type("/new\r")
        await terminal.sees("to come back to this session")
        terminal.type("hi\r")
        await terminal.sees("Hello\n", times=2)
        terminal.type("/quit\r")
        assert await terminal.end() == 0
    assert server.of_type(m.Inference)[0].prompt == m.Prompt(user="hi", system="be brief")
    assert len(server.sessions) == 2


async def test_keys_that_are_not_utf_8_are_refused_and_the_chat_goes_on(server, tmp_path):
    async with Terminal(tmp_path, "--url", server.url) as terminal:
        await terminal.sees("model scripted")
        terminal.type("/title caf\udce9x\r")
        await terminal.sees("the text is not valid Unicode")
        terminal.type("hi\r")
        await terminal.sees("Hello\n")


async def test_tab_completes_commands(server, tmp_path):
    async with Terminal(tmp_path, "--url", server.url) as terminal:
        await terminal.sees("model scripted")
        terminal.type("/hel\t")
        await terminal.sees("/help")
        terminal.type("\r")
        await terminal.sees("list the commands")


async def test_the_end_of_the_terminal_leaves_the_answer_running(server, tmp_path):
    server.held = True
    async with Terminal(tmp_path, "--url", server.url) as terminal:
        await terminal.sees("model scripted")
        terminal.type("words\r")
        server.step(1)
        await terminal.sees("word0 ")
        terminal._process.send_signal(signal.SIGHUP)
        await terminal.end()
    assert server.of_type(m.Cancel) == []
    assert server.session().open != []
