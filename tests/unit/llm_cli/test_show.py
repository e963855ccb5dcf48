"""What is written of an answer, and what is recorded with each piece."""

import contextlib
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llm_cli.render import Markdown, Plain
from llm_cli.show import PIECE_CHARS, JsonDisplay, Shown, TextDisplay
from llmws.client import Done, Position, Queue, Reset, Start, Token
from llmws.protocol import messages as m


class FakeScreen:
    """Keeps what is written, and dies when told."""

    def __init__(self, dies_after: int | None = None) -> None:
        self.text = ""
        self.last = Shown()
        self.at_line_start = True
        self._left = dies_after

    async def write(self, text, record=None):
        if self._left == 0:
            raise BrokenPipeError
        if self._left is not None:
            self._left -= 1
        self.text += text
        if text:
            self.at_line_start = text.endswith("\n")
        if record is not None:
            self.last = record


def token(seq: int, data: str) -> Token:
    return Token(request_id="r", index=seq, data=data, ids=[1], seq=seq, epoch=1)


def start(seq: int) -> Start:
    return Start(request_id="r", model="", tokens_in=1, max_tokens=1, seed=1, seq=seq, epoch=1)


def done(seq: int, reason: str = "stop") -> Done:
    return Done(
        request_id="r",
        total_tokens=1,
        finish_reason=reason,
        usage=m.Usage(prompt_tokens=1, completion_tokens=1, cached_tokens=0),
        timing=m.Timing(queued_ms=0, ttft_ms=0, tokens_per_s=1),
        text_sha256="",
        seq=seq,
        epoch=1,
    )


def display(
    screen: FakeScreen,
    shown: Shown | None = None,
    notes: list[str] | None = None,
    renderer=None,
    places: list[str] | None = None,
) -> TextDisplay:
    return TextDisplay(
        screen,
        renderer or Plain(),
        note=(notes if notes is not None else []).append,
        wait=(places if places is not None else []).append,
        record=lambda shown: shown,
        shown=shown or Shown(),
    )


async def test_text_is_written_and_its_place_recorded():
    screen = FakeScreen()
    showing = display(screen)
    for event in (start(1), token(2, "a\x1bb"), done(3)):
        await showing.show(event)
    assert screen.text == "ab\n"
    assert screen.last == Shown(position=Position(epoch=1, last_seq=3))


async def test_a_long_token_is_recorded_piece_by_piece():
    screen = FakeScreen(dies_after=3)
    showing = display(screen)
    await showing.show(start(1))
    with contextlib.suppress(BrokenPipeError):
        await showing.show(token(2, "x" * 5 * PIECE_CHARS))
    assert screen.last == Shown(position=Position(epoch=1, last_seq=1), chars=2 * PIECE_CHARS)
    assert len(screen.text) == 2 * PIECE_CHARS


async def test_what_was_shown_is_skipped_across_differently_cut_tokens():
    screen = FakeScreen()
    showing = display(screen, Shown(position=Position(epoch=1, last_seq=1), chars=5))
    for event in (token(2, "abc"), token(3, "defg"), done(4)):
        await showing.show(event)
    assert screen.text == "fg\n"


async def test_a_new_answer_is_shown_from_its_first_character():
    """Also when the session of the bookmark is lost and another answers in its place."""
    screen = FakeScreen()
    showing = display(screen, Shown(position=Position(epoch=1, last_seq=1), chars=5))
    for event in (start(2), token(3, "abcdef")):
        await showing.show(event)
    assert screen.text == "abcdef"


async def test_a_reset_shows_everything_after_a_note():
    screen, notes = FakeScreen(), []
    showing = display(screen, Shown(position=Position(epoch=1, last_seq=1), chars=5), notes)
    await showing.show(Reset(request_id="r", text="abcdefg", seq=9, epoch=2))
    assert screen.text == "abcdefg"
    assert screen.last == Shown(position=Position(epoch=2, last_seq=9))
    assert len(notes) == 1


async def test_the_place_in_the_queue_is_shown_until_the_answer_begins():
    places = []
    showing = display(FakeScreen(), places=places)
    for event in (Queue(request_id="r", position=3), Queue(request_id="r", position=1, eta_ms=1800), start(1)):
        await showing.show(event)
    assert places == ["waiting: 3 to be answered before", "waiting: 1 to be answered before, about 2 s", ""]


async def test_ends_that_are_not_the_models_are_noted():
    notes = []
    showing = display(FakeScreen(), notes=notes)
    for reason in ("stop", "cancelled", "length", "interrupted"):
        await showing.show(done(1, reason))
    assert len(notes) == 2


async def test_the_open_fence_is_recorded():
    screen = FakeScreen()
    showing = display(screen, renderer=Markdown())
    await showing.show(token(2, "```\nx"))
    assert screen.last.fence == "```"


async def test_markup_that_an_answer_leaves_open_is_not_the_next_ones():
    screen = FakeScreen()
    showing = display(screen, renderer=Markdown())
    for event in (start(1), token(2, "```\ncut"), done(3), start(4), token(5, "# Head"), done(6)):
        await showing.show(event)
    await showing.show(Reset(request_id="r", text="# Again", seq=7, epoch=1))
    assert screen.text.endswith("\n\x1b[1;36m# Head\x1b[0m\n\x1b[1;36m# Again\x1b[0m")
    assert screen.last.fence == ""


async def test_json_lines_are_ascii():
    screen = FakeScreen()
    await JsonDisplay(screen, record=lambda shown: shown).show(token(2, "é\x9b"))
    assert screen.text.isascii()
    assert json.loads(screen.text)["data"] == "é\x9b"
    assert screen.last == Shown(position=Position(epoch=1, last_seq=2))


texts = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=12), min_size=1, max_size=6)


@example(["ab", "ab", "ab"], [(3, True), (1, False)])
@given(texts, st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=4))
async def test_killed_any_number_of_times_every_character_is_written_once(texts, lives):
    """Each life ends between two writes; the tokens of a life may arrive merged into one."""
    events = [start(1), *(token(seq, text) for seq, text in enumerate(texts, start=2)), done(len(texts) + 2)]
    written, shown = "", Shown()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llm_cli.show.PIECE_CHARS", 3)
        for dies_after, is_merged in [*lives, (None, False)]:
            screen = FakeScreen(dies_after)
            screen.last = shown
            showing = display(screen, shown)
            arriving = events[shown.position.last_seq if shown.position else 0 :]
            with contextlib.suppress(BrokenPipeError):
                for event in merged(arriving) if is_merged else arriving:
                    await showing.show(event)
            written, shown = written + screen.text, screen.last
    assert written.rstrip("\n") == "".join(texts).rstrip("\n")


def merged(events: list) -> list:
    """The same events with neighbouring tokens as one."""
    out: list = []
    for event in events:
        if out and isinstance(event, Token) and isinstance(out[-1], Token):
            out[-1] = token(event.seq, out[-1].data + event.data)
        else:
            out.append(event)
    return out
