"""The conversation as a tree: branches, answers once more, imports, titles."""

from __future__ import annotations

from typing import Any

import pytest

from llmws.engine_api import PromptJob
from tests.support.stages import HubClient, HubStage
from tests.support.stories import ASK, finish, history, received, types, welcomed


class Prompts(HubStage):
    """A stage that notes the contexts it renders."""

    def execute(self, command):
        if isinstance(command, PromptJob):
            self.contexts.append([(turn.role, turn.content) for turn in command.turns])
        super().execute(command)

    def start(self):
        self.contexts: list[list[tuple[str, str]]] = []
        super().start()


async def ask(stage: HubStage, user: HubClient, request_id: str, **body: Any) -> None:
    await user.send({"type": "inference", "request_id": request_id, **body})
    await finish(stage)
    assert (await types(user))[-1] == "done"


async def test_a_prompt_may_follow_any_message_and_sees_only_the_branch_above_it():
    stage = Prompts()
    user, _ = await welcomed(stage)
    await ask(stage, user, "a", prompt="one")
    await ask(stage, user, "b", prompt="two")
    first_answer = (await history(user))[1]["id"]
    await ask(stage, user, "c", prompt="other two", parent_id=first_answer)
    await ask(stage, user, "d", prompt="three")
    assert stage.contexts[2] == [("user", "one"), ("assistant", "Hello"), ("user", "other two")]
    assert stage.contexts[3][2:] == [("user", "other two"), ("assistant", "Hello"), ("user", "three")]


async def test_an_empty_parent_begins_anew():
    stage = Prompts()
    user, _ = await welcomed(stage)
    await ask(stage, user, "a", prompt={"system": "be brief", "user": "one"})
    await ask(stage, user, "b", prompt="fresh", parent_id="")
    assert stage.contexts[1] == [("system", "be brief"), ("user", "fresh")]
    assert [each["parent_id"] for each in await history(user)][2] is None


async def test_a_question_is_answered_again_beside_its_first_answer():
    stage = Prompts()
    user, _ = await welcomed(stage)
    await ask(stage, user, "a", prompt="one")
    await ask(stage, user, "b", prompt="two")
    question = (await history(user))[2]
    await ask(stage, user, "c", parent_id=question["id"])
    assert stage.contexts[2] == [("user", "one"), ("assistant", "Hello"), ("user", "two")]
    messages = await history(user)
    assert [(each["role"], each["request_id"]) for each in messages[3:]] == [("assistant", "b"), ("assistant", "c")]
    assert messages[4]["parent_id"] == question["id"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"prompt": "x", "parent_id": "nope"}, "parent_id"),
        ({"parent_id": "nope"}, "parent_id"),
        ({"parent_id": ""}, "prompt"),
        ({"messages": [{"role": "user", "content": "x"}], "parent_id": "nope"}, "parent_id"),
        ({}, "prompt"),
    ],
)
async def test_a_place_that_is_not_there_is_refused(body, field):
    user, _ = await welcomed(HubStage())
    await user.send({"type": "inference", "request_id": "a", **body})
    assert [(each["code"], each["field"]) for each in received(user)] == [("bad_request", field)]


async def test_only_a_question_can_be_answered_again():
    stage = HubStage()
    user, _ = await welcomed(stage)
    await ask(stage, user, "a", prompt="one")
    answer = (await history(user))[1]["id"]
    await user.send({"type": "inference", "request_id": "b", "parent_id": answer})
    assert [(each["code"], each["field"]) for each in received(user)] == [("bad_request", "parent_id")]


async def test_branches_survive_a_restart():
    stage = Prompts()
    user, welcome = await welcomed(stage)
    await ask(stage, user, "a", prompt="one")
    await ask(stage, user, "b", prompt="two", parent_id="")
    before = await history(user)
    await stage.restart()
    user, _ = await welcomed(stage, session_id=welcome["session_id"])
    received(user)
    assert await history(user) == before
    await ask(stage, user, "c", prompt="three")
    assert stage.contexts[0] == [("user", "two"), ("assistant", "Hello"), ("user", "three")]


async def test_imported_messages_become_a_branch_of_their_own_that_the_next_prompt_follows():
    stage = Prompts()
    user, welcome = await welcomed(stage)
    await ask(stage, user, "a", prompt="one")
    imported = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "earlier"},
        {"role": "assistant", "content": "indeed"},
    ]
    await user.send({"type": "import", "messages": imported})
    assert received(user) == [{"type": "session_updated", "session_id": welcome["session_id"], "title": "one"}]
    await ask(stage, user, "b", prompt="now")
    turns = [(each["role"], each["content"]) for each in imported]
    assert stage.contexts[1] == [*turns, ("user", "now")]
    assert [each["request_id"] for each in await history(user)] == ["a", "a", None, None, "b", "b"]


async def test_an_import_is_refused_while_an_answer_is_on_its_way_or_with_a_system_message_inside():
    stage = HubStage()
    user, _ = await welcomed(stage)
    good = [{"role": "user", "content": "x"}]
    await user.send({"type": "import", "messages": [*good, {"role": "system", "content": "y"}]})
    assert [(each["code"], each["field"]) for each in received(user)] == [("bad_request", "messages[1]")]
    await user.send(ASK)
    received(user)
    await user.send({"type": "import", "messages": good})
    assert await types(user) == ["conflict"]


async def test_the_title_is_what_was_given_or_how_the_conversation_begins_and_outlives_a_restart():
    stage = HubStage()
    user, welcome = await welcomed(stage)
    await ask(stage, user, "a", prompt="  What is\n the answer?")

    async def title() -> str | None:
        await user.send({"type": "list_sessions"})
        return received(user)[-1]["sessions"][0]["title"]

    assert await title() == "What is the answer?"
    await user.send({"type": "update_session", "title": "Answers"})
    assert received(user)[-1]["title"] == "Answers"
    await stage.restart()
    user, _ = await welcomed(stage, session_id=welcome["session_id"])
    received(user)
    assert await title() == "Answers"
    await user.send({"type": "update_session"})
    received(user)
    assert await title() == "What is the answer?"


async def test_an_update_is_confirmed_only_when_it_is_safe():
    stage = HubStage()
    user, _ = await welcomed(stage)
    stage.is_store_stuck = True
    await user.send({"type": "update_session", "title": "x"})
    await user.send({"type": "config", "data": {"temperature": 0.1}})
    await user.send({"type": "ping"})
    assert await types(user) == ["pong"]
    stage.is_store_stuck = False
    await stage.step()
    assert await types(user) == ["session_updated", "config_ack"]


async def test_a_question_that_is_named_or_imported_is_context_though_nobody_answered_it():
    stage = Prompts()
    user, _ = await welcomed(stage)
    await ask(stage, user, "a", prompt="one")
    question = (await history(user))[0]["id"]
    await ask(stage, user, "b", prompt="more", parent_id=question)
    assert stage.contexts[1] == [("user", "one"), ("user", "more")]
    await user.send({"type": "import", "messages": [{"role": "user", "content": "imported"}]})
    received(user)
    await ask(stage, user, "c", prompt="and")
    assert stage.contexts[2] == [("user", "imported"), ("user", "and")]


async def test_a_title_that_comes_from_a_question_holds_no_control_characters():
    stage = HubStage()
    user, _ = await welcomed(stage)
    await ask(stage, user, "a", prompt="a\x1b[31mred\u202e question")
    await user.send({"type": "list_sessions"})
    assert received(user)[-1]["sessions"][0]["title"] == "a[31mred question"


async def test_an_unanswered_question_is_in_the_history_but_in_no_context():
    stage = Prompts()
    user, _ = await welcomed(stage)
    await user.send({"type": "inference", "request_id": "long", "prompt": "word " * 70})
    assert (await types(user))[-1] == "context_too_long"
    await ask(stage, user, "a", prompt="short")
    assert stage.contexts[1] == [("user", "short")]
    assert [each["request_id"] for each in await history(user)] == ["long", "a", "a"]
