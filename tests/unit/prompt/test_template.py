"""What a template can and cannot do."""

from __future__ import annotations

import itertools
import time
from datetime import datetime

import pytest

from llmws.engine_api import Turn
from llmws.errors import PromptError
from llmws.prompt import template
from llmws.prompt.template import MAX_SOURCE_CHARS, ChatTemplate
from llmws.protocol import ErrorCode

HELLO = [Turn(role="user", content="hello")]


def compiled(source: str) -> ChatTemplate:
    """The template, in a world where a loop step or call takes a millisecond."""
    milliseconds = itertools.count()
    return ChatTemplate(
        source,
        {"bos_token": "<s>"},
        clock=lambda: datetime(2026, 3, 1, 12, 30),  # noqa: DTZ001
        cpu_clock=lambda: next(milliseconds) / 1000,
    )


def render(source: str) -> str:
    return compiled(source).render(HELLO)


def failure(source: str) -> tuple[ErrorCode, str]:
    with pytest.raises(PromptError) as caught:
        render(source)
    return caught.value.code, str(caught.value)


def test_a_template_sees_messages_special_tokens_and_the_time() -> None:
    source = "{{ bos_token }}{{ messages[0].role }}|{{ messages[0]['content'] }}|{{ strftime_now('%Y-%m-%d %H:%M') }}"
    assert render(source) == "<s>user|hello|2026-03-01 12:30"


SHOWN = [Turn(role="user", content="hello"), Turn(role="user", content="and this?", images=2)]


def test_a_turn_with_images_is_shown_in_parts() -> None:
    source = "{% for each in messages %}{{ each.content | tojson }}{% endfor %}"
    parts = '[{"type": "image"}, {"type": "image"}, {"type": "text", "text": "and this?"}]'
    assert compiled(source).render(SHOWN) == '"hello"' + parts


def test_a_template_that_knows_parts_only_gets_them_for_every_turn() -> None:
    """Of a model with a processor; a template of any other model may leave a text out on purpose."""
    source = (
        "{% for m in messages %}{% for part in m.content %}<{{ part.type }}:{{ part.text }}>{% endfor %}{% endfor %}"
    )
    with_processor = ChatTemplate(source, {}, has_processor=True)
    assert with_processor.render(SHOWN) == "<text:hello><image:><image:><text:and this?>"
    assert ChatTemplate(source, {}).render(HELLO) == "<:>" * len("hello")


def test_a_template_that_fails_on_what_it_is_tried_with_says_so_when_it_is_used() -> None:
    with pytest.raises(PromptError, match=r"refuses this conversation: never$"):
        ChatTemplate("{{ raise_exception('never') }}", {}, has_processor=True).render(HELLO)


def test_a_template_that_refuses_is_quoted_without_control_characters() -> None:
    source = "{{ raise_exception('no \\x1b[31msystem\\x1b[0m role,\\r\\nsorry ' + 'x' * 1000) }}"
    code, message = failure(source)
    assert code == ErrorCode.MODEL_FAILED
    assert message.startswith("the model's chat template refuses this conversation: no [31msystem [0m role, sorry xxx")
    assert message.isprintable()
    assert len(message) < 400


@pytest.mark.parametrize(
    "source",
    [
        "{% if %}",
        "{{ 1 / 0 }}",
        "{{ nothing.at.all }}",
        "{{ messages[0].content() }}",
        "{% include 'other' %}",
        "{% extends 'other' %}",
        "{{ messages | no_such_filter }}",
        "(" * 100 + "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "x" * (MAX_SOURCE_CHARS + 1),
    ],
    ids=lambda source: source[:24],
)
def test_a_template_that_is_broken_fails_as_the_model_s_fault(source: str) -> None:
    code, message = failure(source)
    assert code == ErrorCode.MODEL_FAILED
    assert "the model's chat template" in message


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% set text = 'x' * 9999 %}{% for a in text %}{% for b in text %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(200) }}",
        "{% for a in [1, 2, 3] recursive %}{{ loop([1, 2, 3]) }}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for a in range(10 ** 9) %}{% endfor %}",
        "{{ range(10 ** 5) | list | length }}{% for a in range(100001) %}{% endfor %}",
        "{{ 9 ** 999999999 }}",
        "{% set ns = namespace(n=3) %}{% for a in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
        "{{ 'x' * 10 ** 10 }}",
        "{{ ([1] * 10 ** 10) | length }}",
        "{{ 10 ** 10 * 'x' }}",
        "{{ range(100000) | list | tojson(indent=100000) | length }}",
        "{{ 5 in ([1] | slice(20000000)) }}",
        "{{ range(1000) | map('center', 90000) | join | length }}",
        "{{ ('<!---->' * 100000) | striptags | length }}",
        "{{ ([range(90000) | list] * 90) | sum(start=[]) | length }}",
        "{{ range(20000) | map('string') | select | reject | list | length }}",
        "{{ (messages * 20000) | selectattr('role') | rejectattr('no') | list | length }}",
    ],
)
def test_a_template_that_would_not_end_is_ended(source: str) -> None:
    assert failure(source)[0] == ErrorCode.MODEL_FAILED


def test_the_filters_that_take_steps_do_what_they_did() -> None:
    source = (
        "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join }}"
        "{{ [1, 2, 3] | reject('odd') | list }}{{ nothing | map('upper') | list }}{{ none | select | list }}"
        "{{ [1, 2.5] | sum }}{{ [{'n': 2}, {'n': 3}] | sum('n') }}"
    )
    assert render(source) == "hello[2][][]3.55"


def test_a_template_that_says_too_much_is_ended() -> None:
    source = "{% for a in range(99) %}{{ 'x' * 999999 }}{% endfor %}"
    assert failure(source) == (ErrorCode.CONTEXT_TOO_LONG, "the prompt is longer than 8388608 characters")


def test_every_rendering_has_ten_seconds() -> None:
    """A loop step and a call take a millisecond each, and so does calling `range`."""
    hasty = compiled("{% for a in range(4999) %}{% if a.bit_length() > 12 %}.{% endif %}{% endfor %}")
    assert [hasty.render(HELLO) for _ in range(2)] == ["." * 903] * 2
    source = "{% for a in range(5000) %}{{ a.bit_length() }}{% endfor %}"
    assert failure(source) == (ErrorCode.MODEL_FAILED, "the model's chat template failed: it took more than 10 s")


def test_heavy_steps_end_as_soon_as_light_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the real clock: each of these steps makes eight million characters."""
    monkeypatch.setattr(template, "MAX_CPU_S", 0.05)
    started_s = time.thread_time()
    with pytest.raises(PromptError, match=r"more than 0\.05 s"):
        ChatTemplate("{% for a in range(99999) %}{% set b = 'x' * 8000000 %}{% endfor %}", {}).render(HELLO)
    assert time.thread_time() - started_s < 2


def test_a_long_conversation_is_nowhere_near_the_limit() -> None:
    started_s = time.thread_time()
    turns = [Turn(role="user", content="hi " * 50)] * 4096
    text = ChatTemplate("{% for m in messages %}{{ m.content | trim }}{% endfor %}", {}).render(turns)
    assert len(text) == 4096 * 149
    assert time.thread_time() - started_s < 1


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''['__class__'] }}",
        "{{ '' | attr('__class__') }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__closure__ }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ self._TemplateReference__context }}",
        "{{ dict.__class__ }}",
        "{{ dict.update(messages[0], role='system') }}",
        "{{ namespace(__class__=1) }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{{ lipsum(n=1) }}",
    ],
)
def test_a_template_cannot_leave_the_sandbox_or_change_what_it_is_given(source: str) -> None:
    """What is not for it is undefined, which is written as nothing, or an error."""
    try:
        assert render(source) == ""
    except PromptError as error:
        assert error.code == ErrorCode.MODEL_FAILED  # noqa: PT017
