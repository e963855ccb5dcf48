"""From a job to its answer: what fits, what is dropped, what is refused. Here a character is a token."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmws.engine_api import ModelRef, PromptFailed, PromptJob, PromptReady, Turn
from llmws.errors import PromptError
from llmws.prompt import render as rendering
from llmws.prompt.render import render, smallest
from llmws.protocol import ErrorCode

REF = ModelRef(name="m", path="models/m", location="/nowhere", size_bytes=0, source="models")


class Letters:
    """A model whose template writes `r:content;` for each turn, and whose tokens are bytes. Keeps the texts."""

    vocab_size = 256

    def __init__(self, refuses: Callable[[list[Turn]], bool] = lambda _: False) -> None:
        self.template = self
        self.texts: list[str] = []
        self._refuses = refuses

    def render(self, turns: list[Turn]) -> str:
        if self._refuses(turns):
            raise PromptError(ErrorCode.BAD_REQUEST, "no")
        return "".join(f"{turn.role[0]}:{turn.content};" for turn in turns)

    def spelled(self, text: str) -> str:
        return text

    def tokenize_rendered(self, text: str) -> list[int]:
        self.texts.append(text)
        return list(text.encode())


def job(**fields: Any) -> PromptJob:
    return PromptJob(**({"key": "k", "model": REF, "max_context": 100, "reserve": 10} | fields))


def text(event: object) -> str:
    assert isinstance(event, PromptReady), event
    return bytes(event.ids).decode()


def talk(*contents: str) -> tuple[Turn, ...]:
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return tuple(Turn(role=roles[content[0]], content=content[1:]) for content in contents)  # type: ignore[arg-type]


def test_a_context_that_fits_is_rendered_whole() -> None:
    event = render(job(turns=talk("sbrief", "uhi", "ahello", "ubye"), droppable=True), Letters())
    assert (text(event), event.key) == ("s:brief;u:hi;a:hello;u:bye;", "k")


def test_the_oldest_whole_exchanges_are_dropped_and_the_system_turn_stays() -> None:
    turns = talk("sbrief", "uone", "aONE", "utwo", "aTWO", "uthree")
    event = render(job(turns=turns, droppable=True, max_context=40, reserve=5), Letters())
    assert text(event) == "s:brief;u:two;a:TWO;u:three;"
    assert event == PromptReady(key="k", ids=tuple(b"s:brief;u:two;a:TWO;u:three;"), dropped_turns=2)


def test_a_question_without_an_answer_is_an_exchange_too() -> None:
    event = render(job(turns=talk("u" + "x" * 90, "uone", "aONE", "utwo"), droppable=True), Letters())
    assert text(event) == "u:one;a:ONE;u:two;"


def test_an_answer_that_came_first_is_dropped_first() -> None:
    event = render(job(turns=talk("a" + "x" * 90, "uone", "aONE", "utwo"), droppable=True), Letters())
    assert text(event) == "u:one;a:ONE;u:two;"


def test_the_last_question_is_sent_even_when_it_leaves_less_than_the_reserve() -> None:
    event = render(job(turns=talk("uone", "aONE", "u" + "x" * 94), droppable=True, reserve=50), Letters())
    assert text(event) == "u:" + "x" * 94 + ";"


def test_a_context_that_the_client_supplied_is_never_shortened() -> None:
    turns = talk("u" + "x" * 40, "a" + "x" * 40, "uhi")
    assert len(text(render(job(turns=turns), Letters()))) == 91  # no room for the reserve, but for an answer
    event = render(job(turns=(*turns, *talk("a" + "x" * 20, "uhi"))), Letters())
    message = "the prompt has 119 tokens; the model's context is 100, of which one is for the answer"
    assert event == PromptFailed(key="k", code=ErrorCode.CONTEXT_TOO_LONG, message=message)


@pytest.mark.parametrize("droppable", [False, True])
def test_a_prompt_that_alone_fills_the_context_is_refused_with_both_numbers(droppable: bool) -> None:
    event = render(job(turns=talk("u" + "x" * 97), droppable=droppable), Letters())
    message = "the prompt has 100 tokens; the model's context is 100, of which one is for the answer"
    assert event == PromptFailed(key="k", code=ErrorCode.CONTEXT_TOO_LONG, message=message)


def test_a_refusal_while_dropping_is_the_answer() -> None:
    model = Letters(refuses=lambda turns: len(turns) == 1)
    event = render(job(turns=talk("u" + "x" * 90, "a.", "uhi"), droppable=True), model)
    assert event == PromptFailed(key="k", code=ErrorCode.BAD_REQUEST, message="no")


def test_more_text_than_is_ever_tokenised_is_dropped_or_refused_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "MAX_CONTENT_BYTES", 20)
    model = Letters()
    turns = talk("ufirst", "a" + "x" * 100, "usecond", "ananswer", "uend")
    assert text(render(job(turns=turns, droppable=True), model)) == "u:second;a:nanswer;u:end;"
    refused = render(job(turns=talk("u" + "ä" * 11), droppable=True), model)
    message = "the prompt has 22 bytes; at most 20 are taken"
    assert refused == PromptFailed(key="k", code=ErrorCode.CONTEXT_TOO_LONG, message=message)
    assert model.texts == ["u:second;a:nanswer;u:end;"]


def test_an_image_counts_as_all_the_tokens_that_it_takes() -> None:
    """That is an estimate: older turns are dropped for it, but nothing is refused."""
    turns = tuple(Turn(role=each.role, content=each.content, images=2) for each in talk("uone", "utwo", "uend"))
    fields = {"turns": turns, "droppable": True, "max_context": 100, "reserve": 10}
    assert render(job(**fields), Letters()) == PromptReady(key="k", ids=tuple(b"u:one;u:two;u:end;"), images=6)
    shorter = PromptReady(key="k", ids=tuple(b"u:two;u:end;"), images=4, dropped_turns=1)
    assert render(job(**fields, image_tokens=20), Letters()) == shorter
    shortest = PromptReady(key="k", ids=tuple(b"u:end;"), images=2, dropped_turns=2)
    assert render(job(**fields, image_tokens=49), Letters()) == shortest


def test_of_more_images_than_a_prompt_may_hold_the_oldest_are_dropped() -> None:
    turns = tuple(Turn(role="user", content="x", images=5) for _ in range(4))
    shorter = PromptReady(key="k", ids=tuple(b"u:x;u:x;u:x;"), images=15, dropped_turns=1)
    assert render(job(turns=turns, droppable=True), Letters()) == shorter
    message = "the prompt has 20 images; 16 are taken"
    refused = render(job(turns=turns), Letters())
    assert refused == PromptFailed(key="k", code=ErrorCode.CONTEXT_TOO_LONG, message=message)


def test_an_id_that_the_model_does_not_have_never_reaches_it() -> None:
    model = Letters()
    model.vocab_size = 122
    assert render(job(turns=talk("uxy")), model) == PromptReady(key="k", ids=tuple(b"u:xy;"))
    message = "the model's tokenizer made id 122; the model's vocabulary has 122 ids"
    refused = render(job(turns=talk("uxyz")), model)
    assert refused == PromptFailed(key="k", code=ErrorCode.MODEL_FAILED, message=message)


def test_token_ids_are_taken_as_they_are() -> None:
    assert render(job(input_ids=(0, 255, 7)), Letters()) == PromptReady(key="k", ids=(0, 255, 7))


@pytest.mark.parametrize(
    ("fields", "code", "message"),
    [
        ({"input_ids": (1, 256)}, "model_failed", "input_ids[1] is 256; the model's vocabulary has 256 ids"),
        ({"input_ids": (-1,)}, "model_failed", "input_ids[0] is -1; the model's vocabulary has 256 ids"),
        ({"input_ids": ()}, "model_failed", "the prompt is empty"),
        ({"turns": ()}, "model_failed", "the prompt is empty"),
        (
            {"input_ids": (1,) * 100},
            "context_too_long",
            "the prompt has 100 tokens; the model's context is 100, of which one is for the answer",
        ),
    ],
)
def test_what_no_model_could_answer_is_refused(fields: dict[str, Any], code: str, message: str) -> None:
    assert render(job(**fields), Letters()) == PromptFailed(key="k", code=ErrorCode(code), message=message)


@given(
    sizes=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=40),
    system=st.booleans(),
    last=st.integers(0, 120),
    max_context=st.integers(10, 1500),
    reserve=st.integers(1, 400),
)
def test_just_as_many_exchanges_are_dropped_as_needed(
    sizes: list[tuple[int, int]], system: bool, last: int, max_context: int, reserve: int
) -> None:
    """Kills: dropping one more or one less, dropping the system turn, half exchanges, ignoring the reserve."""
    head = talk("sbrief") if system else ()
    exchanges = [talk("u" + "q" * asked, "a" + "r" * answered) for asked, answered in sizes] + [talk("u" + "z" * last)]
    contexts = [sum(exchanges[start:], head) for start in range(len(exchanges))]
    renders = [Letters().render(list(context)) for context in contexts]
    wanted = next((i for i, each in enumerate(renders) if len(each) <= max_context - reserve), len(exchanges) - 1)

    event = render(job(turns=contexts[0], droppable=True, max_context=max_context, reserve=reserve), Letters())

    if len(renders[wanted]) >= max_context:
        assert isinstance(event, PromptFailed)
        assert event.code == ErrorCode.CONTEXT_TOO_LONG
    else:
        assert event == PromptReady(key="k", ids=tuple(renders[wanted].encode()), dropped_turns=2 * wanted)


@given(low=st.integers(0, 50), length=st.integers(0, 3000), data=st.data())
def test_smallest_asks_few_questions(low: int, length: int, data: st.DataObject) -> None:
    """Kills: galloping that never turns into halving, a guess that is not used, off by one."""
    high = low + length
    answer = data.draw(st.integers(low, high))
    guess = data.draw(st.integers(low - 5, high + 5))
    asked = []

    def fits(number: int) -> bool:
        asked.append(number)
        return number >= answer

    assert smallest(fits, low, high, guess) == answer
    assert all(low <= number < high for number in asked)
    assert len(set(asked)) == len(asked) <= 2 + 2 * math.ceil(math.log2(length + 2))
    if guess == answer:
        assert len(asked) <= 2


def test_dropping_tokenises_little_more_than_the_text_itself() -> None:
    """A long conversation costs a few renderings, not one for every turn that goes."""
    model = Letters()
    turns = [turn for n in range(2000) for turn in talk(f"uquestion {n} " + "q" * (n % 90), "a" + "r" * (n % 170))]
    event = render(job(turns=(*turns, *talk("ubye")), droppable=True, max_context=4000, reserve=1000), model)
    assert 2500 < len(text(event)) <= 3000
    assert len(model.texts) <= 6
    assert sum(map(len, model.texts)) <= 2 * len(model.texts[0])
