"""What a template can and cannot do."""

from __future__ import annotations

from datetime import datetime

import pytest

from llmws.engine_api import Turn
from llmws.errors import PromptError
from llmws.prompt.template import MAX_SOURCE_CHARS, ChatTemplate
from llmws.protocol import ErrorCode

HELLO = [Turn(role="user", content="hello")]


def render(source: str, turns: list[Turn] = HELLO) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}, clock=lambda: datetime(2026, 3, 1, 12, 30)).render(turns)  # noqa: DTZ001


def failure(source: str) -> tuple[ErrorCode, str]:
    with pytest.raises(PromptError) as caught:
        render(source)
    return caught.value.code, str(caught.value)


def test_a_template_sees_messages_special_tokens_and_the_time() -> None:
    source = "{{ bos_token }}{{ messages[0].role }}|{{ messages[0]['content'] }}|{{ strftime_now('%Y-%m-%d %H:%M') }}"
    assert render(source) == "<s>user|hello|2026-03-01 12:30"


def test_a_template_that_refuses_is_quoted_without_control_characters() -> None:
    source = "{{ raise_exception('no \\x1b[31msystem\\x1b[0m role,\\r\\nsorry ' + 'x' * 1000) }}"
    code, message = failure(source)
    assert code == ErrorCode.BAD_REQUEST
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
    ],
)
def test_a_template_that_would_not_end_is_ended(source: str) -> None:
    assert failure(source)[0] == ErrorCode.MODEL_FAILED


def test_a_template_that_says_too_much_is_ended() -> None:
    source = "{% for a in range(99) %}{{ 'x' * 999999 }}{% endfor %}"
    assert failure(source) == (ErrorCode.CONTEXT_TOO_LONG, "the prompt is longer than 8388608 characters")


def test_the_budget_of_steps_is_that_of_one_rendering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmws.prompt.template.MAX_STEPS", 12)
    template = ChatTemplate("{% for a in range(5) %}{{ a.bit_length() }}{% endfor %}", {})
    assert [template.render(HELLO) for _ in range(2)] == ["01223", "01223"]  # 5 turns of the loop, 5 + 1 calls
    assert failure("{% for a in range(6) %}{{ a.bit_length() }}{% endfor %}")[0] == ErrorCode.MODEL_FAILED


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
