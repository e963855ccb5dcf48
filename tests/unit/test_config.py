"""The configuration: where values come from, and that a bad one is named and stops the start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmws import config
from llmws.config import Config
from llmws.errors import ConfigError
from llmws.protocol.messages import Sampling

EXAMPLE = Path(__file__).parents[2] / "config.example.json"


def load(path: Path, content: object = None, **environ: str) -> Config:
    """The configuration from a file with this content, under these variables."""
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return config.load(path, environ=environ)


def refusal(path: Path, content: object = None, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, content, **environ)
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config.json"


# --- the file --------------------------------------------------------------------------------------------------------


def test_the_first_start_makes_the_file_with_every_key(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "config.json"
    assert load(path) == Config()
    assert path.read_text() == EXAMPLE.read_text() == config.to_json(Config())
    assert load(path) == Config()


def test_the_environment_is_not_written_into_the_new_file(path: Path) -> None:
    assert load(path, LLMWS_SERVER_PORT="1").server.port == 1
    assert load(path).server.port == 8765


def test_an_existing_file_is_left_as_it_is(path: Path) -> None:
    text = '{ "server" : {"port": 1} }'
    load(path, text)
    assert path.read_text() == text


@pytest.mark.parametrize("content", [{}, {"server": {}}, {"server": {"port": 8765}}])
def test_what_the_file_leaves_out_is_default(path: Path, content: object) -> None:
    assert load(path, content) == Config()


def test_what_is_written_is_read_back(path: Path) -> None:
    changed = config.override(
        Config(),
        {"server": {"hosts": ["a.example", "b.example"], "port": 0}, "generation_defaults": {"seed": 7}},
    )
    assert load(path, config.to_json(changed)) == changed
    assert changed.server.hosts == ("a.example", "b.example")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"server": {"port": 65536}}, "server.port: expected `int` <= 65535"),
        ({"server": {"port": "8765"}}, "server.port: expected `int`, got `str`"),
        ({"server": {"port": 8765.5}}, "server.port: expected `int`, got `float`"),
        ({"server": {"prot": 1}}, "server: object contains unknown field `prot`; did you mean port?"),
        ({"sever": {}}, "object contains unknown field `sever`; did you mean server?"),
        ({"server": {"zzz": 1}}, "server: object contains unknown field `zzz`"),
        ({"server": None}, "server: expected `object`, got `null`"),
        ({"server": {"hosts": ["ok", 5]}}, "server.hosts[1]: expected `str`, got `int`"),
        (
            {"server": {"hosts": ["fd00::7"]}},
            "server.hosts[0]: expected a name with or without a port, as box.example or [fd00::7]:8765",
        ),
        *(
            (
                {"server": {"origins": ["app://x", origin]}},
                "server.origins[1]: expected an origin, which has a scheme and no path, as https://box.example",
            )
            for origin in ("box.example", "https://box.example/", "null", "*")
        ),
        ({"server": {"proxies": ["::1", "10.0.0.0/8"]}}, "server: proxies lists '10.0.0.0/8', which is no IP address"),
        ({"optimization": {"device": "cuda:"}}, "optimization.device: expected auto, cpu, cuda or cuda:N"),
        (
            {"optimization": {"tier": "fast"}},
            """optimization.tier: invalid enum value 'fast'; it is one of "auto", "fallback\"""",
        ),
        (
            {"optimization": {"flash_attention": 1}},
            'optimization.flash_attention: expected `bool | str`, got `int`; it is one of true, false, "auto"',
        ),
        ({"optimization": {"memory_utilization": 0}}, "optimization.memory_utilization: expected `float` > 0.0"),
        ({"generation_defaults": {"temperature": -1}}, "generation_defaults.temperature: expected `float` >= 0.0"),
        ({"storage": {"durability": "tape"}}, "storage.durability: invalid enum value 'tape'"),
        ([], "expected `object`, got `array`"),
        ("", "not valid JSON (Input data was truncated); delete it to get the defaults back"),
        ('{"server": {"port": NaN}}', "not valid JSON ("),
        ('{"server": {"heartbeat_s": 1e999}}', "server.heartbeat_s: number out of range"),
        ("[" * 100_000, "expected `object`, got `array`"),
        ('{"server": {"host": ' + "[" * 100_000, "server.host: expected `str`, got `array`"),
    ],
)
def test_a_bad_file_is_refused_with_the_path_of_the_value(path: Path, content: object, message: str) -> None:
    assert refusal(path, content).startswith(message)


def test_a_file_that_is_not_utf_8_is_refused(path: Path) -> None:
    path.write_bytes(b'{"server": {"host": "\xff"}}')
    assert refusal(path).startswith("not valid JSON (")


def test_a_file_that_cannot_be_read_or_made_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "cannot be read (Is a directory)"
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "config.json"
    assert refusal(path) in {
        "cannot be read (Not a directory)",
        "cannot be written (File exists); name another with --config",
    }


# --- the environment -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "text", "section", "expected"),
    [
        ("LLMWS_SERVER_PORT", "1", "server", {"port": 1}),
        ("LLMWS_SERVER_HOST", "0.0.0.0", "server", {"host": "0.0.0.0"}),
        ("LLMWS_SERVER_HOST", '"::1"', "server", {"host": "::1"}),
        ("LLMWS_SERVER_HOSTS", '["a.example"]', "server", {"hosts": ("a.example",)}),
        ("LLMWS_MODEL_NAME", "llama", "model", {"name": "llama"}),
        ("LLMWS_MODEL_NAME", "42", "model", {"name": "42"}),
        ("LLMWS_MODEL_NAME", "null", "model", {"name": None}),
        ("LLMWS_MODEL_LOAD_ON_DEMAND", "false", "model", {"load_on_demand": False}),
        ("LLMWS_AUTH_REQUIRED", "false", "auth", {"required": False}),
        ("LLMWS_GENERATION_DEFAULTS_TOP_P", "0.5", "generation_defaults", {"top_p": 0.5}),
        ("LLMWS_SERVER_TLS_CERT", "", "server", {"tls_cert": None}),
        ("LLMWS_PATHS_STATE_DIR", "/srv/llmws", "paths", {"state_dir": "/srv/llmws"}),
        ("LLMWS_PATHS_STATE_DIR", "\udcff", "paths", {"state_dir": "\udcff"}),
    ],
)
def test_a_variable_goes_before_the_file(
    path: Path, variable: str, text: str, section: str, expected: dict[str, Any]
) -> None:
    content = {"server": {"port": 2, "host": "file"}, "model": {"name": "file"}, "paths": {"state_dir": "file"}}
    before = config.load(EXAMPLE, environ={}) if section in {"auth", "generation_defaults"} else load(path, content)
    after = load(path, content, **{variable: text})
    values = getattr(after, section)
    assert {key: getattr(values, key) for key in expected} == expected
    unchanged = [key for key in values.__struct_fields__ if key not in expected]
    assert {key: getattr(values, key) for key in unchanged} == {
        key: getattr(getattr(before, section), key) for key in unchanged
    }


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("LLMWS_SERVER_PORT", "65536", "server.port: expected `int` <= 65535"),
        ("LLMWS_SERVER_PORT", "http", "server.port: expected `int`, got `str`"),
        ("LLMWS_SERVER_PORT", "", "server.port: expected `int`, got `str`"),
        ("LLMWS_AUTH_REQUIRED", "no", "auth.required: expected `bool`, got `str`"),
        ("LLMWS_SERVER_HOSTS", "a.example", "server.hosts: expected `array`, got `str`"),
        ("LLMWS_SERVER_HOSTS", "[" * 100_000, "server.hosts: expected `array`, got `str`"),
        ("LLMWS_SERVER_PROT", "1", "there is no such setting; did you mean LLMWS_SERVER_PORT?"),
    ],
)
def test_a_bad_variable_is_named(path: Path, variable: str, text: str, message: str) -> None:
    """A typing mistake in the environment must not be taken for the file's, nor for nothing."""
    assert refusal(path, {}, **{variable: text}) == f"environment variable {variable}: {message}"


def test_other_people_s_variables_are_ignored(path: Path) -> None:
    assert load(path, {}, LLMWS_TOKEN="x", PORT="1", LLMWS_SERVER="x", llmws_server_port="1") == Config()


def test_every_setting_has_a_variable() -> None:
    names = config.environment_names()
    sections = json.loads(config.to_json(Config()))
    assert sorted(names.values()) == sorted((section, key) for section, keys in sections.items() for key in keys)
    assert names["LLMWS_GENERATION_DEFAULTS_MAX_NEW_TOKENS"] == ("generation_defaults", "max_new_tokens")


# --- the command line ------------------------------------------------------------------------------------------------


def test_the_command_line_goes_before_the_environment(path: Path) -> None:
    loaded = load(path, {"server": {"port": 1, "host": "file"}}, LLMWS_SERVER_PORT="2", LLMWS_MODEL_NAME="env")
    final = config.override(loaded, {"server": {"port": 3}, "model": {}})
    assert (final.server.port, final.server.host, final.model.name) == (3, "file", "env")


def test_a_bad_option_is_named_like_a_bad_value_of_the_file() -> None:
    with pytest.raises(ConfigError, match=r"^server\.port: expected `int` >= 0$"):
        config.override(Config(), {"server": {"port": -1}})


def test_the_generation_defaults_are_sampling_parameters() -> None:
    sampling = config.override(Config(), {"generation_defaults": {"seed": 5}}).generation_defaults.to_sampling()
    expected = Sampling(
        max_new_tokens=512,
        do_sample=True,
        temperature=0.7,
        top_p=0.95,
        top_k=50,
        min_p=0.0,
        repetition_penalty=1.0,
        frequency_penalty=0.0,
        presence_penalty=0.0,
        seed=5,
    )
    assert sampling == expected


def test_a_variable_of_no_section_is_told_in_the_log(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(path, {}, LLMWS_GENERATION_TOP_P="0.5", LLMWS_TOKEN="x")
    assert caplog.messages == [
        "environment variable LLMWS_GENERATION_TOP_P is no setting; did you mean LLMWS_GENERATION_DEFAULTS_TOP_P?",
        "environment variable LLMWS_TOKEN is no setting",
    ]


def test_a_variable_is_logged_in_printable_text(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(path, {}, **{"LLMWS_\x1b[31m\udcc2": "x"})
    assert caplog.messages == ["environment variable LLMWS_\\x1b[31m\\udcc2 is no setting"]
