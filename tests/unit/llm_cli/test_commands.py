"""The chat's commands, from one table."""

import pytest

from llm_cli.actions import ACTIONS, SETTINGS
from llm_cli.commands import COMMANDS, Call, Command, complete, completes, help_text, missing, nearest, parse

WORDS = {
    "models": ["alpha", "beta"],
    "settings": ["top_k=", "top_p=", "seed="],
    "sessions": ["6f1c"],
    "exports": ["my talk.md"],
    "imports": ["old.json"],
    "": [],
}


def completed(text: str, *, is_online: bool = True, is_admin: bool = True) -> list[str]:
    """What `text` becomes by each completion."""
    found = complete(
        text,
        is_online=is_online,
        is_admin=is_admin,
        words=lambda kind, _typed: [(word, "") for word in WORDS[kind]],
    )
    return [text[: len(text) - replaced] + word for word, _, replaced in found]


def test_every_command_has_one_action():
    assert set(ACTIONS) == {command.name for command in COMMANDS}


def test_settings_are_the_sampling_parameters():
    assert {"temperature", "max_new_tokens", "seed"} <= set(SETTINGS)


@pytest.mark.parametrize(
    ("line", "name", "argument"),
    [
        ("/help", "help", ""),
        ("/HELP  ", "help", ""),
        ("/switch  llama ", "switch", "llama"),
        ("/system be brief\nand kind", "system", "be brief\nand kind"),
        ("/config a=1  b=2", "config", "a=1  b=2"),
    ],
)
def test_calls(line, name, argument):
    call = parse(line)
    assert isinstance(call, Call)
    assert (call.command.name, call.argument) == (name, argument)


@pytest.mark.parametrize(
    "line", ["hello", "/etc/hosts is what?", "what is /help?", "/2 + 2", "3 /help", " /help", " /usr is what?"]
)
def test_prompts_are_not_calls(line):
    assert parse(line) is None


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("/modles", "there is no /modles; did you mean /models?"),
        ("/zzz", "there is no /zzz; /help lists the commands"),
        ("/qqq is what?", "there is no /qqq; /help lists the commands; with a space in front the line is a prompt"),
        ("/", "a command follows the slash; /help lists them"),
    ],
)
def test_what_is_no_command_is_said(line, answer):
    assert parse(line) == answer


def test_names_are_completed():
    assert completed("/s") == ["/switch ", "/system ", "/status", "/sessions", "/session "]
    assert completed("hello /s") == []


def test_only_available_commands_are_completed():
    assert completed("/s", is_online=False) == ["/system ", "/session "]
    assert completed("/sw", is_admin=False) == []


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        ("/switch ", ["/switch alpha", "/switch beta"]),
        ("/switch b", ["/switch beta"]),
        ("/config seed=1 top_", ["/config seed=1 top_k=", "/config seed=1 top_p="]),
        ("/config seed=1 ", ["/config seed=1 top_k=", "/config seed=1 top_p=", "/config seed=1 seed="]),
        ("/session 6", ["/session 6f1c"]),
        ("/export my t", ["/export my talk.md"]),
        ("/import  ", ["/import  old.json"]),
        ("/quit x", []),
        ("/nope x", []),
    ],
)
def test_arguments_are_completed(text, becomes):
    assert completed(text) == becomes


@pytest.mark.parametrize(
    ("text", "kind"), [("/switch", ""), ("/switch ", "models"), ("/SESSION x", "sessions"), ("hi", ""), ("/nope x", "")]
)
def test_what_must_be_looked_up_is_known_before(text, kind):
    assert completes(text) == kind


@pytest.mark.parametrize(
    ("needs", "offline", "as_user"),
    [
        ("nothing", "", ""),
        ("server", "not connected", ""),
        ("session", "not connected", ""),
        ("admin", "not connected", "needs an admin's token"),
    ],
)
def test_what_a_command_lacks(needs, offline, as_user):
    command = Command("x", "", "", needs)
    assert missing(command, is_online=False, is_admin=False) == offline
    assert missing(command, is_online=True, is_admin=False) == as_user
    assert missing(command, is_online=True, is_admin=True) == ""


def test_help_names_every_command_and_what_it_lacks():
    lines = help_text(is_online=False, is_admin=True, columns=200).splitlines()
    assert [line.split()[0] for line in lines[: len(COMMANDS)]] == [f"/{command.name}" for command in COMMANDS]
    offline = [line.endswith("(not connected)") for line in lines[: len(COMMANDS)]]
    assert offline == [command.needs != "nothing" for command in COMMANDS]
    assert help_text(is_online=True, is_admin=False, columns=200).count("(needs an admin's token)") == 2


def test_help_fits_a_narrow_terminal():
    lines = help_text(is_online=False, is_admin=True, columns=40).splitlines()
    assert max(map(len, lines)) <= 40
    assert len(lines) > len(COMMANDS)


def test_the_most_similar_word_is_offered():
    assert nearest("llmws-gide", ["other", "llmws-guide"]) == "did you mean llmws-guide?"
    assert nearest("zzz", ["other"]) == ""


def test_other_names_for_leaving_are_understood():
    assert [parse(line).command.name for line in ("/exit", "/BYE", "/quit")] == ["quit"] * 3
