"""Models made to take all time and memory: the job fails, the server does not notice, and the next prompt is right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tokenizers import Regex, pre_tokenizers

from llmws.engine_api import ModelRef
from llmws.prompt.limits import Limits
from llmws.protocol import ErrorCode
from tests.integration.prompt.harness import Renderer, good_model, template_model
from tests.support import model_folders as folders

MEMORY_BYTES = 384 * 2**20
LIMITS = Limits(memory_bytes=MEMORY_BYTES, base_s=2.0, per_mib_s=0.0)
FAILED = "the model's chat template failed: "
MEMORY = "the model's chat template took too much memory"
TIME = "the model's chat template or tokenizer took more than 2 s"

BOMBS = {
    "a product": ("{{ 'x' * 10 ** 10 }}", FAILED + "the result of * is too large"),
    "doubling": (
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
        MEMORY,
    ),
    "doubling a list": (
        "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
        MEMORY,
    ),
    "a wide format": ("{{ '%999999999d' % 1 }}", MEMORY),
    "wide padding": ("{{ 'x'.ljust(10 ** 11) }}", MEMORY),
    "a long replacement": ("{{ ('a' * 8000000).replace('a', 'a' * 8000000) }}", MEMORY),
    "nested loops": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}" + "{% endfor %}" * 3,
        TIME,
    ),
    "a huge range": ("{% for a in range(10 ** 12) %}x{% endfor %}", FAILED + "Range too big."),
    "recursion": ("{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}", FAILED + "maximum recursion depth"),
    "a tree of macros": (
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
        TIME,
    ),
    "deep nesting": (
        "{% set ns = namespace(l=[]) %}{% for i in range(9999) %}{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l }}",
        FAILED + "maximum recursion depth",
    ),
    "a deep expression": (
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "the model's chat template is not valid: maximum recursion depth",
    ),
    "too many tokens": (
        "{{ '\U0001f642' * 8000000 }}",
        ("the model's tokenizer ", "the model's chat template or tokenizer ended with SIGABRT"),
    ),
}


@pytest.fixture
def renderer() -> Iterator[Renderer]:
    with Renderer(limits=LIMITS) as renderer:
        yield renderer


@pytest.fixture
def model(tmp_path: Path) -> ModelRef:
    return good_model(tmp_path / "good")


@pytest.mark.parametrize(("template", "message"), BOMBS.values(), ids=BOMBS.keys())
def test_a_template_bomb_fails_its_own_job_only(
    renderer: Renderer, model: ModelRef, tmp_path: Path, template: str, message: str | tuple[str, ...]
) -> None:
    check(renderer, model, template_model(tmp_path / "bomb", template), message)


def test_a_tokenizer_that_hangs_in_native_code_is_stopped(renderer: Renderer, model: ModelRef, tmp_path: Path) -> None:
    """A pattern that takes quadratic time, without a step of Python in which the clock could be looked at."""
    tokenizer = folders.byte_level()
    slow = pre_tokenizers.Split(Regex("x+[yz]"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([slow, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    bomb = folders.write_model(tmp_path / "bomb", tokenizer)
    check(renderer, model, bomb, TIME, content="x" * 500_000)


def check(
    renderer: Renderer, good: ModelRef, bomb: ModelRef, message: str | tuple[str, ...], *, content: str = "hi"
) -> None:
    before = renderer.ids(good)
    server_bytes = psutil.Process().memory_info().rss
    renderer.ask(bomb, "bomb", content)
    renderer.ask(good, "waiting")
    failure = renderer.failure("bomb")
    assert failure.code == ErrorCode.MODEL_FAILED
    assert failure.message.startswith(message), failure.message
    assert renderer.answer().key == "waiting"
    assert renderer.ids(good) == before
    assert psutil.Process().memory_info().rss - server_bytes < 16 * 2**20
    assert renderer.process.memory_info().rss < 64 * 2**20
