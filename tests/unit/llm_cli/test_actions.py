"""What is typed after a command."""

import pytest

from llm_cli.actions import settings


@pytest.mark.parametrize(
    ("argument", "found"),
    [
        ("", []),
        ("temperature=0  max_new_tokens=1e3", [("temperature", 0), ("max_new_tokens", 1000)]),
        ('stop=["a b", "c=d"] seed=3', [("stop", ["a b", "c=d"]), ("seed", 3)]),
        ('stop="a b"', [("stop", "a b")]),
        ("stop=END seed=", [("stop", "END"), ("seed", "")]),
        ("stop=1st seed=1", [("stop", "1st"), ("seed", 1)]),
        ("stop=" + "[" * 100_000, [("stop", "[" * 100_000)]),
    ],
)
def test_settings(argument, found):
    assert list(settings(argument)) == found


@pytest.mark.parametrize(
    ("argument", "why"),
    [
        ("temperature", "'temperature' is not NAME=VALUE"),
        ("seed=1 x", "'x' is not NAME=VALUE"),
        ("temprature=1", r"there is no setting temprature; did you mean temperature\?"),
    ],
)
def test_what_is_no_setting_is_said(argument, why):
    with pytest.raises(ValueError, match=f"^{why}$"):
        list(settings(argument))
