"""What is typed after a command."""

from types import SimpleNamespace

import pytest

from llm_cli.actions import ACTIONS, settings
from llmws.client import image


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


async def test_images_are_gathered_for_the_next_question(tmp_path):
    said = []
    chat = SimpleNamespace(images=[], say=said.append)
    file = tmp_path / "a b.gif"
    file.write_bytes(b"GIF89a...")
    for argument in (str(file), str(file), "", "-"):
        await ACTIONS["image"](chat, argument)
        said.append(list(chat.images))

    shown = image(b"GIF89a...")
    two = "2 images go with the next question"
    nothing = "no image goes with the next question"
    assert said == ["1 image goes with the next question", [shown], two, [shown] * 2, two, [shown] * 2, nothing, []]

    chat.images = [shown] * 16
    with pytest.raises(ValueError, match=r"^16 images go with the next question already; no more are taken$"):
        await ACTIONS["image"](chat, str(file))
