"""JSON that is small to send and dear to read, and numbers that are small to write and dear to grant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmws.catalog.catalog import Catalog
from llmws.catalog.choose import find
from llmws.errors import BadRequestError
from llmws.protocol import ErrorCode, FrameError, decode
from llmws.protocol import messages as m
from tests.support.echo_server import Running
from tests.support.hostile_names import HOSTILE


def refusal(frame: str | bytes) -> FrameError:
    with pytest.raises(FrameError) as refused:
        decode(frame)
    return refused.value


def asking(**config: object) -> str:
    return json.dumps({"type": "inference", "request_id": "r", "prompt": "x", "config": config})


@pytest.mark.parametrize("bracket", ["[", '{"a":', '[{"a":'])
@pytest.mark.parametrize("times", [33, 5_000, 100_000])
@pytest.mark.parametrize("around", ["%s", '{"type":"inference","prompt":%s', '{"type":"ping","unknown":%s'])
def test_nesting_is_bounded_before_anything_recurses(bracket: str, times: int, around: str) -> None:
    """A frame of brackets ended the process: CVE-2024-27454, orjson."""
    assert refusal(around % (bracket * times)).code is ErrorCode.BAD_MESSAGE


@pytest.mark.parametrize(
    "number", ["1e999", "-1e999", "NaN", "Infinity", "9" * 5_000, "-1", "1e400", "0x10", "1_0", "٣"]
)
@pytest.mark.parametrize("field", ["temperature", "max_new_tokens", "seed", "top_k"])
def test_a_number_bomb_is_no_number(field: str, number: str) -> None:
    """What the standard library takes for infinity, or turns into an integer in quadratic time: CVE-2020-10735."""
    frame = f'{{"type":"inference","prompt":"x","config":{{"{field}":{number}}}}}'
    assert refusal(frame).code in (ErrorCode.BAD_MESSAGE, ErrorCode.BAD_REQUEST)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"max_new_tokens": 2**31}, "config.max_new_tokens"),
        ({"max_new_tokens": 1_048_577}, "config.max_new_tokens"),
        ({"logprobs": 10**6}, "config.logprobs"),
        ({"top_k": 10**9}, "config.top_k"),
        ({"stop": ["x"] * 17}, "config.stop"),
        ({"stop": "x" * 257}, "config.stop"),
        ({"stop": [""]}, "config.stop"),
        ({"logit_bias": {str(number): 1 for number in range(1025)}}, "config.logit_bias"),
        ({"logit_bias": {"1": 1e9}}, "config.logit_bias"),
        ({"logit_bias": {"x": 1}}, "config.logit_bias"),
        ({"repetition_penalty": -1}, "config.repetition_penalty"),
        ({"frequency_penalty": 1e300}, "config.frequency_penalty"),
    ],
)
def test_no_parameter_multiplies_the_work_without_a_bound(config: dict[str, object], field: str) -> None:
    """`n` of a million filled vLLM's memory before its queue saw the request: CVE-2026-34756."""
    refused = refusal(asking(**config))
    assert (refused.code, (refused.field or "").startswith(field)) == (ErrorCode.BAD_REQUEST, True)


@pytest.mark.parametrize("name", ["n", "best_of", "chat_template", "chat_template_kwargs", "guided_regex", "truncate"])
def test_a_parameter_that_others_fell_over_has_no_effect(name: str) -> None:
    """Copies (CVE-2026-34756), templates and their arguments (CVE-2025-62426), patterns: here they do not exist."""
    message = decode(asking(**{name: 10**9}))
    assert isinstance(message, m.Inference)
    assert message == decode(asking())


def test_of_two_types_none_is_believed() -> None:
    """CVE-2017-12635, CouchDB: the reader that checked took one of two equal keys, the reader that acted the other."""
    for pair in (("ping", "delete_model"), ("delete_model", "ping")):
        frame = '{{"type":"{}","model_name":"x","type":"{}"}}'.format(*pair)
        assert refusal(frame).code in (ErrorCode.BAD_MESSAGE, ErrorCode.BAD_REQUEST)


@pytest.mark.parametrize("text", ["\ud800", "x\udfff", "\ud800\ud800"])
def test_half_a_surrogate_is_no_text(text: str) -> None:
    """Text that cannot be written as UTF-8 breaks whatever writes it later: the log, the disk, the next client."""
    assert refusal(f'{{"type":"inference","prompt":"{text}"}}').code is ErrorCode.BAD_MESSAGE
    assert refusal('{"type":"inference","prompt":"\\ud800"}').code in (ErrorCode.BAD_MESSAGE, ErrorCode.BAD_REQUEST)


async def test_bytes_that_are_no_text_end_the_connection(running: Running) -> None:
    """Overlong forms spell `/` in bytes that no filter looks for: CVE-2000-0884, IIS."""
    for wrong in (b"\xc0\xaf", b"\xed\xa0\x80", b"\xff", b"\xf4\x90\x80\x80", b'{"type":"ping"}\xc0\x80'):
        client = await running.attached()
        client.send(wrong, opcode=1)
        assert await client.close_code() == 1007


@pytest.mark.parametrize(
    "name", [*HOSTILE, "../victim", "models/../../victim", "sha256:../../victim", "file:///victim"]
)
def test_a_model_name_is_never_a_path(tmp_path: Path, name: str) -> None:
    """Ollama joined a digest of the client's to a path: CVE-2024-37032, and again CVE-2026-7020."""
    victim = tmp_path / "victim" / "model.safetensors"
    victim.parent.mkdir()
    victim.touch()
    catalog = Catalog(tmp_path / "models", tmp_path / "own", None)
    with pytest.raises(BadRequestError):
        catalog.delete(name)
    assert find(catalog.scan(), name) is None
    assert victim.exists()
