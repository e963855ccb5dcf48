"""The chat's commands, from one table."""

import pytest

from llm_cli.actions import ACTIONS, SETTINGS
from llm_cli.commands import COMMANDS, Call, complete, help_text, parse


def completed(text: str, *, is_online: bool = True) -> list[str]:
    words = complete(text, is_online=is_online, models=["alpha", "beta"], settings=["top_k", "top_p", "seed"])
    return [word for word, _ in words]


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
    assert completed("/s") == ["/switch", "/system", "/status", "/session"]
    assert completed("hello /s") == []


def test_only_available_commands_are_completed():
    assert completed("/s", is_online=False) == ["/system", "/session"]


def test_arguments_are_completed():
    assert completed("/switch ") == ["alpha", "beta"]
    assert completed("/switch b") == ["beta"]
    assert completed("/config seed=1 top_") == ["top_k=", "top_p="]
    assert completed("/quit x") == []
    assert completed("/nope x") == []


def test_help_names_every_command_and_what_is_missing():
    lines = help_text(is_online=False, columns=200).splitlines()
    assert [line.split()[0] for line in lines[: len(COMMANDS)]] == [f"/{command.name}" for command in COMMANDS]
    assert [line.endswith("(not connected)") for line in lines[: len(COMMANDS)]] == [c.needs_server for c in COMMANDS]
    assert "not connected" not in help_text(is_online=True)


def test_help_fits_a_narrow_terminal():
    lines = help_text(is_online=False, columns=40).splitlines()
    assert max(map(len, lines)) <= 40
    assert len(lines) > len(COMMANDS)
