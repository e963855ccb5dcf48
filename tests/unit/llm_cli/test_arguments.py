"""The command line of `llm`, and that reading it costs nothing."""

import subprocess
import sys

import pytest

from llm_cli.arguments import parse


def test_words_are_one_prompt():
    assert parse(["why", "is", "it", "so?"]).prompt == "why is it so?"


def test_nothing_said_is_nothing_chosen():
    options = parse([])
    assert (options.prompt, options.url, options.session_id, options.sampling) == ("", None, None, {})


def test_every_flag():
    line = """hi --url http://h -m M -s S --json --session 00000000-0000-4000-8000-00000000000A --token T --token-file F
        --wait 9 --max-tokens 5 --temperature 0.5 --top-p 0.9 --top-k 3 --min-p 0.1 --repetition-penalty 1.1 --seed 7
        --stop a --stop b --image a.png --image b.jpg --tls-ca C"""
    options = parse(line.split())
    assert options._asdict() == {
        "prompt": "hi",
        "url": "http://h",
        "host": None,
        "port": None,
        "token": "T",
        "token_file": "F",
        "tls_ca": "C",
        "session_id": "00000000-0000-4000-8000-00000000000a",
        "resume_last": False,
        "json": True,
        "model": "M",
        "system": "S",
        "sampling": {
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 3,
            "min_p": 0.1,
            "repetition_penalty": 1.1,
            "seed": 7,
            "max_new_tokens": 5,
            "stop": ["a", "b"],
        },
        "wait_s": 9.0,
        "temporary": False,
        "images": ["a.png", "b.jpg"],
    }


def test_a_temporary_session_is_a_new_one(capsys):
    assert parse(["--temporary"]).temporary
    for other in (["--continue"], ["--session", "00000000-0000-4000-8000-00000000000a"]):
        with pytest.raises(SystemExit):
            parse(["--temporary", *other])
    assert "--temporary is for a new session" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [["--url", "x", "--host", "y"], ["--session", "x"], ["--port", "70000"], ["--nope"], ["--temp", "1"]],
)
def test_wrong_usage_is_status_2(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(argv)
    assert caught.value.code == 2


def test_session_and_continue_exclude_each_other(capsys):
    with pytest.raises(SystemExit):
        parse(["--continue", "--session", "00000000-0000-4000-8000-000000000000"])
    assert "already names the session" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--version", "--help"])
def test_a_quick_answer_imports_nothing_heavy(flag):
    heavy = ["asyncio", "msgspec", "prompt_toolkit", "rich", "torch", "websockets"]
    code = (
        "import sys, atexit\n"
        f"atexit.register(lambda: print('loaded', sorted(set({heavy!r}) & set(sys.modules))))\n"
        "from llm_cli.main import main\n"
        f"main([{flag!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=20)
    assert done.stdout.splitlines()[-1] == "loaded []"


def test_options_may_stand_between_the_words():
    options = parse(["what", "is", "--temperature", "0", "llmws"])
    assert (options.prompt, options.sampling) == ("what is llmws", {"temperature": 0.0})


def test_words_after_two_dashes_are_no_options():
    assert parse(["--json", "--", "what", "is", "--json"]).prompt == "what is --json"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--wait", "nan"], "'nan' is not a number of seconds"),
        (["--wait", "-1"], "'-1' is not a number of seconds"),
        (["--port", "abc"], "'abc' is not a port"),
        (["caf\udce9"], "the command line is not valid UTF-8"),
    ],
)
def test_wrong_values_are_said_plainly(capsys, argv, message):
    with pytest.raises(SystemExit, match="2"):
        parse(argv)
    assert message in capsys.readouterr().err
