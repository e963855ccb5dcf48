"""What a terminal may be given of an answer."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_cli.render import Markdown, Plain, clean, clean_line, wants_colour, wrap

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


def styled(text: str) -> list[tuple[str, str]]:
    """(style, text) runs of the output."""
    out, style, runs = Markdown().feed(text), "", []
    for part in re.split(r"(\x1b\[[0-9;]*m)", out):
        if ESCAPE.fullmatch(part):
            style = {"\x1b[0m": "", "\x1b[1;36m": "heading", "\x1b[33m": "code", "\x1b[2m": "fence"}.get(part, part)
            style = {"\x1b[1m": "bold", "\x1b[3m": "quote"}.get(style, style)
        elif part:
            runs.append((style, part))
    return runs


@pytest.mark.parametrize(
    "char",
    [
        *map(chr, range(32)),
        "\x7f",
        "\x80",
        "\x9b",
        "\x9f",
        *"\u202e\u2066\u200e\u200f\u061c\u2028\u2029\u200b\U000e0041",
    ],
)
def test_no_control_character_passes(char):
    assert clean(f"a{char}b") == ("ab" if char not in "\n\t" else f"a{char}b")


def test_other_writing_passes():
    text = "héllo שלום 日本 👩‍👧 \u200d"
    assert clean(text) == text


def test_a_line_is_one_line():
    assert clean_line(" a\nb\x1b[31m\tc ") == "a b[31m c"


def test_plain_changes_nothing():
    assert Plain().feed("# **x**") == "# **x**"


def test_headings_and_quotes():
    assert styled("# Title\ntext\n> said\n#tag") == [
        ("heading", "# Title"),
        ("", "\ntext\n"),
        ("quote", "> said"),
        ("", "\n"),
        ("heading", "#"),
        ("", "tag"),
    ]


def test_code_and_bold():
    assert styled("a `b c` d **e f** g") == [
        ("", "a "),
        ("code", "`b c` "),
        ("", "d *"),
        ("bold", "*e f** "),
        ("", "g"),
    ]


def test_a_fence_holds_until_it_closes():
    assert styled("```py\n# x\n**y**\n```\n# z") == [
        ("fence", "```py"),
        ("", "\n"),
        ("code", "# x"),
        ("", "\n"),
        ("code", "**y**"),
        ("", "\n"),
        ("fence", "```"),
        ("", "\n"),
        ("heading", "# z"),
    ]


def test_what_was_not_closed_ends_with_the_line():
    assert styled("**a\nb")[-1] == ("", "\nb")


def test_multiplication_is_not_bold():
    assert [style for style, _ in styled("x**2 + y**2")] == [""]


markdown = st.text(alphabet="#`*~> \nab", max_size=60)


@given(markdown)
def test_every_character_is_printed_once(text):
    assert ESCAPE.sub("", Markdown().feed(text)) == text


@given(markdown)
def test_every_piece_ends_in_the_default_style(text):
    escapes = ESCAPE.findall(Markdown().feed(text))
    assert not escapes or escapes[-1] == "\x1b[0m"


@given(markdown, st.integers(0, 60))
def test_pieces_are_styled_like_the_whole(text, place):
    def flat(*pieces: str) -> list[tuple[str, str]]:
        renderer = Markdown()
        chars, style = [], ""
        for piece in pieces:
            for part in re.split(r"(\x1b\[[0-9;]*m)", renderer.feed(piece)):
                if ESCAPE.fullmatch(part):
                    style = part
                else:
                    chars += [(char, "" if char.isspace() else style) for char in part]
        return [(char, "" if style == "\x1b[0m" else style) for char, style in chars]

    assert flat(text[:place], text[place:]) == flat(text)


@given(markdown)
def test_another_renderer_goes_on_after_a_whole_line(text):
    first = Markdown()
    first.feed(text + "\n")
    assert Markdown(first.state).feed("# x\n```\n") == first.feed("# x\n```\n")


def test_no_colour_without_a_terminal(tmp_path):
    with (tmp_path / "f").open("wb") as file:
        assert not wants_colour({}, fd=file.fileno())


def test_notes_are_wrapped_between_words():
    assert wrap("one two three-four\nfive", 8) == "one two\nthree-four\nfive"
