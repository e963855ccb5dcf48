"""A model that sees, behind a real server: asked by the Python client, killed in the middle, shown bad files."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers

from llmws.client import Client, GenerationError, RequestRejectedError, Token, image
from llmws.protocol import messages as m
from tests.support.real_server import RealServer
from tests.support.seeing_models import encoded, picture, save

LENGTH = 24
GREEDY = m.Sampling(do_sample=False, max_new_tokens=LENGTH)
LONG = m.Sampling(do_sample=True, temperature=1.0, seed=3, max_new_tokens=80, ignore_eos=True)
QUESTION = "what is in this picture?"
PICTURE = picture(1)


class Seeing:
    """A server with a tiny model, and what transformers makes of the same weights."""

    def __init__(self, folder: Path) -> None:
        _, self.processor = save("llava", folder / "models" / "tiny-llava")
        self.network = transformers.AutoModelForImageTextToText.from_pretrained(folder / "models" / "tiny-llava").eval()
        (folder / "config.json").write_text('{"limits": {"max_image_pixels": 10000}}')
        self.server = RealServer(folder, "--models-dir", str(folder / "models"), "--model", "tiny-llava")
        self.server.start()
        self.server.wait_until_loaded()

    def client(self) -> Client:
        return Client(self.server.ready["ws_url"], self.server.token)

    def generated(self, *texts: str) -> str:
        """The greedy answer to a conversation that begins with the picture: a question, its answer, a question, …."""
        parts: list[list[dict[str, Any]]] = [[{"type": "text", "text": text}] for text in texts]
        parts[0].insert(0, {"type": "image", "image": PICTURE})
        conversation = [{"role": ("user", "assistant")[at % 2], "content": part} for at, part in enumerate(parts)]
        inputs = self.processor.apply_chat_template(
            conversation, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        made = self.network.generate(**inputs, do_sample=False, max_new_tokens=LENGTH)
        text: str = self.processor.tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return text


@pytest.fixture(scope="module")
def seeing(tmp_path_factory) -> Iterator[Seeing]:
    seeing = Seeing(tmp_path_factory.mktemp("vision"))
    try:
        yield seeing
    finally:
        seeing.server.close()


async def test_a_conversation_about_a_picture(seeing):
    """Both answers are those of transformers, the second to a prompt that shows the picture of the first turn."""
    async with seeing.client() as client:
        first = await client.generate(QUESTION, images=[image(encoded(PICTURE).data)], config=GREEDY)
        second = await client.generate("and its colour?", config=GREEDY)
        assert client.welcome is not None
        assert client.welcome.capabilities.vision
    assert first.text == seeing.generated(QUESTION)
    assert second.text == seeing.generated(QUESTION, first.text, "and its colour?")


async def test_an_answer_that_is_killed_goes_on_with_its_picture(seeing):
    async with seeing.client() as client:
        shown = [image(encoded(PICTURE).data)]
        undisturbed = await client.generate(QUESTION, images=shown, config=LONG, parent_id="")
        generation = client.generate(QUESTION, images=shown, config=LONG, parent_id="")
        pieces = []
        async for event in generation:
            if isinstance(event, Token):
                pieces.append(event.data)
                if len(pieces) == 20:
                    await asyncio.to_thread(seeing.server.kill)
                    await asyncio.to_thread(seeing.server.start)
    assert "".join(pieces) == undisturbed.text
    assert undisturbed.tokens_generated == 80


@pytest.mark.parametrize(
    ("bad", "code", "message"),
    [
        (m.Image(data="not base64!", mime="image/png"), "bad_request", "this is not an image in base64"),
        (image(encoded(PICTURE).data[:200]), "bad_request", "image 1 is broken or cut short"),
        (image(encoded(picture(1, width=101, height=100)).data), "bad_request", "has 101 x 100 pixels"),
        (image(b"GIF89a" + bytes(2**20)), "too_large", "the server takes 1048576; send a smaller image"),
    ],
    ids=["no base64", "cut short", "too many pixels", "too large for a frame"],
)
async def test_a_bad_picture_gets_a_clear_error_and_the_next_one_its_answer(bad, code, message, seeing):
    async with seeing.client() as client:
        with pytest.raises((RequestRejectedError, GenerationError), match=message) as caught:
            await client.generate(QUESTION, images=[bad])
        assert caught.value.error.code == code
        answer = await client.generate(QUESTION, images=[image(encoded(PICTURE).data)], config=GREEDY)
    assert answer.text == seeing.generated(QUESTION)
