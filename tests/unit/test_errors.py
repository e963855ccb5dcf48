"""What strangers' texts become before anybody reads them."""

from __future__ import annotations

import pytest

from llmws.errors import one_line, printable


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("as it is", "as it is"),
        ("two\nlines\r\n\x1b[2Jand \u202e more", "two lines [2Jand more"),
        ("x" * 10, "x" * 10),
        ("x" * 11, "x" * 9 + "…"),
        ("", ""),
    ],
)
def test_a_strangers_text_becomes_one_short_line(text: str, line: str) -> None:
    assert one_line(text, limit_chars=10 if set(text) == {"x"} else 300) == line


def test_what_is_shown_in_full_is_escaped() -> None:
    assert printable("a\n\x1b\ud800") == "a\\n\\x1b\\ud800"
