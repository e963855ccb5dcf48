"""Images of a question: shown again in every later turn and after a kill, and never to a model that is blind."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import pytest

from llmws.engine.scripted import model_info
from llmws.engine_api import ImageInput, ModelLoaded, PromptJob, PromptReady
from llmws.protocol import messages as m
from llmws.session import conversation as session_conversation
from llmws.session import events as e
from llmws.session.conversation import HEAVY_CHARS, MAX_CHARS, Conversation
from llmws.session.images import decoded, wrong_images
from llmws.session.records import MessageBody, encode_body
from llmws.store_api import Record
from tests.support.stages import GUIDE, MAX_CONTEXT, OTHER, HubStage
from tests.support.stories import ASK, finish, history, received, types, wait, welcomed


class SeeingStage(HubStage):
    """A stage whose guide takes images, six tokens each; notes what the prompts and the engine were given.

    `room` is how many images the context has room for: of more, the oldest turns are left out.
    """

    room = 9

    def start(self) -> None:
        self.jobs: list[PromptJob] = []
        self.shown: list[tuple[bytes, ...]] = []
        self.answer_lengths: list[int] = []
        super().start()
        self.post(ModelLoaded(info=msgspec.structs.replace(INFO, vision=True, image_tokens=6)))

    def execute(self, command: e.HubCommand) -> None:
        if isinstance(command, PromptJob):
            self.jobs.append(command)
            counts = [turn.images for turn in command.turns]
            dropped = next(each for each in range(len(counts)) if sum(counts[each:]) <= self.room)
            images = sum(counts[dropped:])
            ids = (7,) * (images + 1)
            self.inbox.append(PromptReady(key=command.key, ids=ids, images=images, dropped_turns=dropped))
            return
        if isinstance(command, e.Submit):
            self.shown.append(tuple(each.data for each in command.request.images))
            self.answer_lengths.append(command.request.max_new_tokens)
        super().execute(command)


UUID = "00000000-0000-4000-8000-000000000001"
INFO = model_info(GUIDE, max_context=MAX_CONTEXT)


def full_message(message_id: str, data_chars: int) -> MessageBody:
    """A question with an image of that size."""
    image = m.Image(data="A" * data_chars, mime="image/png")
    return MessageBody(
        id=message_id, parent_id=None, role="user", content="hi?", request_id="z", created_s=0.0, images=(image,)
    )


def prompt(text: str, *images: str) -> dict[str, Any]:
    """A prompt with images of these contents."""
    encoded = [{"data": base64.b64encode(each.encode()).decode(), "mime": "image/png"} for each in images]
    return {"user": text, "images": encoded}


async def ask(stage: HubStage, user, request_id: str, **body: Any) -> None:
    await user.send({"type": "inference", "request_id": request_id, **body})
    await finish(stage)
    assert (await types(user))[-1] == "done"


async def test_an_image_is_shown_with_its_question_and_in_every_turn_after_it():
    stage = SeeingStage()
    user, _ = await welcomed(stage)
    await ask(stage, user, "a", prompt=prompt("what is it?", "cat", "dog"))
    await ask(stage, user, "b", prompt="are you sure?")
    await ask(stage, user, "c", prompt=prompt("", "cow"))
    await ask(stage, user, "d", prompt="fresh", parent_id="")

    assert stage.shown == [(b"cat", b"dog"), (b"cat", b"dog"), (b"cat", b"dog", b"cow"), ()]
    assert [turn.images for turn in stage.jobs[2].turns] == [2, 0, 0, 0, 1]


async def test_the_engine_gets_a_file_as_it_was_sent():
    stage = SeeingStage()
    user, _ = await welcomed(stage)
    requests = []
    stage.engine.submit = requests.append
    await user.send({**ASK, "prompt": prompt("what is it?", "cat")})
    assert requests[0].images == (ImageInput(mime="image/png", data=b"cat", name="image 1"),)


async def test_images_are_named_as_their_author_counts_them():
    stage = SeeingStage()
    user, _ = await welcomed(stage)
    await ask(stage, user, "a", prompt=prompt("one", "cat"))
    requests = []
    stage.engine.submit = requests.append
    await user.send({**ASK, "request_id": "b", "prompt": prompt("two", "dog", "cow")})
    assert [each.name for each in requests[0].images] == ["an image of an earlier question", "image 1", "image 2"]


@pytest.mark.parametrize(
    ("data", "is_taken"),
    [
        ("QUJD", True),
        ("QUI=", True),
        ("QQ==", True),
        ("", False),
        ("QUJ", False),
        ("QR==", False),
        ("QUJ=", False),
        ("QQ==QQ==", False),
        ("QU JD", False),
        ("QUJD\n", False),
        ("QU-_", False),
        ("Ä" * 4, False),
    ],
)
def test_of_the_ways_to_write_base64_one_is_taken(data, is_taken):
    images = [m.Image(data=data, mime="image/png")]
    assert (wrong_images(images) is None) == is_taken
    if is_taken:
        assert base64.b64encode(decoded(images, asked=1)[0].data).decode() == data


async def test_a_full_conversation_refuses_a_question_unseen_but_knows_its_own(monkeypatch):
    stage = SeeingStage()
    user, _ = await welcomed(stage)
    await ask(stage, user, "a", prompt=prompt("one", "cat"))
    monkeypatch.setattr(session_conversation, "MAX_CHARS", 3)
    for request_id, body in (("a", "two"), ("b", "two")):
        await user.send({"type": "inference", "request_id": request_id, "prompt": body})
    known, new = received(user)[-2:]
    assert (known["code"], new["code"], new["field"]) == ("conflict", "bad_request", "prompt")
    assert new["message"] == "this session's conversation is full; begin another session"


@pytest.mark.parametrize(("more", "sessions"), [(0, 2), (4, 1)])
async def test_a_session_full_of_images_leaves_memory_with_its_owner(more, sessions):
    stage = SeeingStage()
    user, welcome = await welcomed(stage)
    for request_id, chars in (("a", HEAVY_CHARS // 2), ("b", HEAVY_CHARS // 2 + more)):
        image = {"data": "A" * chars, "mime": "image/png"}
        await ask(stage, user, request_id, prompt={"user": "x", "images": [image]})
    wait(stage, 1)
    other, _ = await welcomed(stage)
    await user.cut()
    wait(stage, 1)
    await other.send({"type": "get_status"})
    assert (await other.receive())["sessions"] == sessions

    user, _ = await welcomed(stage, session_id=welcome["session_id"])
    await ask(stage, user, "c", prompt="and now?")
    assert sum(map(len, stage.shown[-1])) == (HEAVY_CHARS + more) // 4 * 3


async def test_a_question_answered_again_shows_its_images_again():
    stage = SeeingStage()
    user, _ = await welcomed(stage)
    await ask(stage, user, "a", prompt=prompt("what is it?", "cat"))
    await ask(stage, user, "b", prompt=prompt("and this?", "dog"))
    question = (await history(user))[2]
    await ask(stage, user, "c", parent_id=question["id"])
    assert stage.shown[2] == (b"cat", b"dog")


async def test_of_a_conversation_with_too_many_images_the_newest_are_shown():
    stage = SeeingStage()
    stage.room = 2
    user, _ = await welcomed(stage)
    await ask(stage, user, "a", prompt=prompt("one", "cat"))
    await ask(stage, user, "b", prompt=prompt("two", "dog"))
    await ask(stage, user, "c", prompt=prompt("three", "cow"))
    assert stage.shown == [(b"cat",), (b"cat", b"dog"), (b"dog", b"cow")]


async def test_the_answer_may_take_what_images_perhaps_leave():
    """How many tokens they take the engine sees; of the context's 64 only one id for each, and the text's, are gone."""
    stage = SeeingStage()
    user, _ = await welcomed(stage)
    await ask(stage, user, "a", prompt=prompt("what is it?", "cat", "dog"))
    assert stage.answer_lengths == [MAX_CONTEXT - 1 - 2]
    assert stage.jobs[0].image_tokens == 6


@pytest.mark.parametrize("is_first_turn", [True, False])
async def test_after_a_kill_the_answer_goes_on_with_the_same_images(is_first_turn):
    stage = SeeingStage()
    user, welcome = await welcomed(stage)
    if not is_first_turn:
        await ask(stage, user, "a", prompt=prompt("one", "cat"))
    await user.send({"type": "inference", "request_id": "b", "prompt": prompt("two", "dog")})
    await stage.step()
    before = stage.shown[-1]
    await stage.restart()

    assert stage.shown == [before]
    assert before == ((b"dog",) if is_first_turn else (b"cat", b"dog"))
    user, _ = await welcomed(stage, session_id=welcome["session_id"])
    await finish(stage)
    await ask(stage, user, "c", prompt="three")
    assert stage.shown[-1] == before


async def test_a_model_that_takes_no_images_refuses_them_at_once():
    stage = HubStage()
    user, _ = await welcomed(stage)
    await user.send({**ASK, "prompt": prompt("what is it?", "cat")})
    error = await user.receive()
    assert (error["code"], error["field"]) == ("bad_request", "prompt.images")
    assert error["message"] == "this model takes no images"
    assert "seq" not in error


async def test_of_a_model_that_was_not_loaded_it_is_seen_when_the_turn_comes():
    stage = SeeingStage(models=(GUIDE, OTHER))
    user, _ = await welcomed(stage)
    await user.send({**ASK, "model": "other", "prompt": prompt("what is it?", "cat")})
    await finish(stage)
    end = received(user)[-1]
    assert (end["type"], end["code"], end["message"]) == ("error", "bad_request", "this model takes no images")
    assert stage.jobs == []


async def test_a_conversation_with_images_is_not_for_a_model_that_takes_none():
    stage = SeeingStage(models=(GUIDE, OTHER))
    user, _ = await welcomed(stage)
    await ask(stage, user, "a", prompt=prompt("what is it?", "cat"))
    await user.send({"type": "inference", "request_id": "b", "model": "other", "prompt": "and now?"})
    await finish(stage)
    end = received(user)[-1]
    assert (end["type"], end["code"], end["message"]) == ("error", "bad_request", "this model takes no images")
    await ask(stage, user, "c", prompt="and now?")
    assert stage.shown[-1] == (b"cat",)


@pytest.mark.parametrize(("data_chars", "is_full"), [(MAX_CHARS - 3, False), (MAX_CHARS - 2, True)])
def test_images_count_for_what_a_conversation_may_hold(data_chars, is_full):
    kept = Record(kind="message", value=encode_body(full_message("1", data_chars)), n=1)
    assert Conversation(UUID, records=[kept]).is_full == is_full
