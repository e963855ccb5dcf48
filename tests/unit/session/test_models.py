"""Models side by side: who runs on which, what is loaded for whom, and which one is the default."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from llmws.engine.scripted import model_info
from llmws.engine_api import GenerationRequest, ModelLoaded, ModelProgress, ModelUnloaded, PromptJob
from llmws.protocol import messages as m
from llmws.session import events as e
from llmws.session.line import Line
from tests.support.stages import GUIDE, MAX_CONTEXT, OTHER, THIRD, HubClient, HubStage, rendered
from tests.support.stories import ASK, NUMBERS, client, finish, received, text, types, welcomed

COUNT = {**NUMBERS, "request_id": "n"}


class ModelStage(HubStage):
    """Three models to ask for; it notes what the hub asks of the engine, and can hold prompts back."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"models": (GUIDE, OTHER, THIRD), **settings})
        self.loads.clear()

    def start(self) -> None:
        self.loads: list[str] = []
        self.submitted: list[GenerationRequest] = []
        self.warnings: list[str] = []
        self.held_prompts: list[PromptJob] | None = None
        super().start()

    def execute(self, command: e.HubCommand) -> None:
        if isinstance(command, e.LoadModel):
            self.loads.append(command.model.name)
        elif isinstance(command, e.Submit):
            self.submitted.append(command.request)
        elif isinstance(command, e.Warn):
            self.warnings.append(command.message)
        if isinstance(command, PromptJob) and self.held_prompts is not None:
            self.held_prompts.append(command)
        else:
            super().execute(command)

    def release_prompts(self) -> None:
        jobs, self.held_prompts = self.held_prompts or [], None
        for job in jobs:
            self.post(rendered(job))


async def asked(stage: HubStage, *models: str | None, **request: Any) -> list[HubClient]:
    """A user for each of these models, with one request."""
    users = [(await welcomed(stage))[0] for _ in models]
    for user, model in zip(users, models, strict=True):
        await user.send({**(request or ASK), "model": model})
    return users


def models_of(users: list[HubClient]) -> list[str]:
    """The model that each has a start from."""
    return [message["model"] for user in users for message in received(user) if message["type"] == "start"]


async def switched(stage: HubStage, name: str) -> HubClient:
    """An admin who has switched."""
    admin, _ = await welcomed(stage)
    await admin.send({"type": "switch_model", "name": name})
    return admin


# --- the line --------------------------------------------------------------------------------------------------------


def test_a_line_has_a_head_for_each_model_and_one_order():
    line = Line()
    for session_id, model in [("a", "x"), ("b", None), ("c", "x"), ("a", None), ("d", None)]:
        line.join(session_id, model)
    assert (list(line), line.heads()) == (["a", "b", "c", "d"], ["a", "b"])
    line.leave("a")
    line.leave("a")
    assert (list(line), line.heads()) == (["b", "c", "d"], ["b", "c"])
    line.join("a", "y")
    line.leave("b")
    assert line.heads() == ["c", "d", "a"]


# --- requests --------------------------------------------------------------------------------------------------------


async def test_without_a_model_a_request_is_refused():
    user, welcome = await welcomed(HubStage(models=(), selected=None))
    assert "model" in welcome
    assert welcome["model"] is None
    await user.send(ASK)
    assert await types(user) == ["no_model"]


async def test_a_request_for_another_model_loads_it_and_stops_nobody():
    stage = ModelStage()
    users = await asked(stage, None, "other", None)
    assert models_of(users) == [GUIDE.name, "other", GUIDE.name]
    assert stage.loads == ["other"]


async def test_a_request_for_a_model_that_is_there_loads_nothing():
    stage = ModelStage()
    users = await asked(stage, "other", "var/models/other", "llmws-guide", "other")
    assert models_of(users) == ["other", "other", GUIDE.name, "other"]
    assert stage.loads == ["other"]


async def test_what_the_engine_gets_says_whose_it_is_and_on_which_model():
    stage = ModelStage()
    await asked(stage, None, "other")
    assert [(each.model, each.owner) for each in stage.submitted] == [(GUIDE, "local"), (OTHER, "local")]


async def test_each_model_has_a_limit_of_its_own():
    stage = ModelStage(max_running=1)
    users = await asked(stage, None, "other", None, "other", "third")
    assert models_of(users) == [GUIDE.name, "other", "third"]
    await finish(stage)
    assert models_of(users) == [GUIDE.name, "other"]


async def test_whoever_names_the_default_stands_in_one_line_with_whoever_names_none():
    stage = ModelStage(max_running=1)
    first, *users = await asked(stage, None, "llmws-guide", None, "models/llmws-guide")
    order = []
    for _ in users:
        await finish(stage, 2)
        order += [number for number, user in enumerate(users) if models_of([user])]
    assert order == [0, 1, 2]
    assert models_of([first]) == [GUIDE.name]


async def test_a_load_that_waits_for_room_is_asked_for_once_before_the_next_and_stops_nobody():
    stage = ModelStage(max_resident=1)
    (busy,) = await asked(stage, None, **COUNT)
    waiting = await asked(stage, "other", "other", "third")
    later = await asked(stage, None)
    assert stage.loads == ["other"]
    assert models_of([busy, *waiting, *later]) == [GUIDE.name, GUIDE.name]
    await finish(stage, 70)
    assert stage.loads == ["other", "third"]
    assert models_of(waiting) == ["other", "other", "third"]


async def test_nobody_waits_for_ever_for_a_model_that_does_not_fit_beside_a_busy_one():
    stage = ModelStage(max_resident=1, max_running=2)
    await asked(stage, None)
    (exotic,) = await asked(stage, "other")
    for _ in range(8):
        await asked(stage, None, None)
        await stage.step()
    assert await types(exotic) == ["start", "token", "token", "done"]


async def test_a_model_that_makes_room_at_once_still_gives_its_waiting_requests_their_turn():
    stage = ModelStage()
    stage.is_engine_stuck = True
    (user,) = await asked(stage, "other")
    stage.for_engine.clear()
    info = model_info(OTHER)
    commands = stage.hub.handle(ModelLoaded(info=info), ModelUnloaded(name="other"))
    assert [each.model for each in commands if isinstance(each, PromptJob)] == [OTHER]
    assert models_of([user]) == []


async def test_a_prompt_whose_model_makes_room_meanwhile_goes_to_it_all_the_same():
    stage = ModelStage()
    await asked(stage, "other")
    await finish(stage)
    stage.held_prompts = []
    (user,) = await asked(stage, "other")
    assert stage.engine.unload("other")
    stage.post(e.Tick())
    stage.release_prompts()
    await finish(stage)
    assert [message["type"] for message in received(user)] == ["start", "token", "token", "done"]
    assert stage.hub.resident == {GUIDE.name, "other"}


async def test_ids_are_compared_with_the_vocabulary_of_the_model_that_is_named():
    stage = ModelStage()
    small = msgspec.structs.replace(model_info(OTHER), vocab_size=5)
    stage.post(ModelLoaded(info=small))
    users = await asked(stage, "other", None, **COUNT)
    assert [(await user.receive())["type"] for user in users] == ["error", "start"]


# --- loads that nobody waits for -------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["cancel", "disconnect", "end", "damage"])
async def test_a_load_that_nobody_waits_for_any_more_is_taken_back(way):
    """Or everybody behind it would wait until what runs has drained, for nothing."""
    stage = ModelStage(max_resident=1)
    await asked(stage, None, **COUNT)
    user, welcome = await welcomed(stage)
    await user.send({**ASK, "model": "other", "on_disconnect": "cancel"})
    assert stage.engine.wanted == {"other"}
    match way:
        case "cancel":
            await user.send({"type": "cancel", "request_id": "a"})
        case "disconnect":
            await user.cut()
        case "end":
            await user.send({"type": "end_session", "session_id": welcome["session_id"]})
        case "damage":
            stage.disk.failing.add(welcome["session_id"])
            await user.send({"type": "update_session", "title": "x"})
    assert stage.engine.wanted == frozenset()
    assert models_of(await asked(stage, None)) == [GUIDE.name]


async def test_a_load_that_others_wait_for_too_is_kept():
    stage = ModelStage(max_resident=1)
    await asked(stage, None, **COUNT)
    first, second = await asked(stage, "other", "other")
    await first.send({"type": "cancel", "request_id": "a"})
    assert stage.engine.wanted == {"other"}
    await second.send({"type": "cancel", "request_id": "a"})
    assert stage.engine.wanted == frozenset()
    assert stage.loads == ["other"]


async def test_a_load_for_a_switch_or_of_the_default_is_kept_though_no_request_waits_for_it():
    stage = ModelStage(max_resident=1)
    stage.is_engine_stuck = True
    (user,) = await asked(stage, "other")
    await switched(stage, "other")
    await user.send({"type": "cancel", "request_id": "a"})
    stage.is_engine_stuck = False
    stage.post(e.Tick())
    assert stage.hub.default is not None
    assert stage.hub.default.ref == OTHER
    await asked(stage, GUIDE.name)
    await finish(stage)
    (busy,) = await asked(stage, GUIDE.name, **COUNT)
    (user,) = await asked(stage, None)
    await user.send({"type": "cancel", "request_id": "a"})
    assert stage.engine.wanted == {"other"}
    assert models_of([busy]) == [GUIDE.name]


async def test_a_load_that_was_taken_back_too_late_is_not_done_twice():
    """The engine has begun it when it is taken back, and another one is asked for before it ends."""
    stage = ModelStage()
    stage.is_engine_stuck = True
    (user,) = await asked(stage, "other")
    await user.send({"type": "cancel", "request_id": "a"})
    await asked(stage, "other")
    assert stage.loads == ["other", "other"]
    commands = stage.hub.handle(ModelLoaded(info=model_info(OTHER)))
    assert [each for each in commands if isinstance(each, e.WithdrawLoad)] == [e.WithdrawLoad("other")]


# --- prompts that are being rendered ---------------------------------------------------------------------------------


async def test_a_load_waits_for_the_prompts_that_are_being_rendered_but_not_for_those_that_come_later():
    """Or the model that they were rendered for would make room before they reach it, and be loaded again."""
    stage = ModelStage(max_resident=1, max_running=2)
    stage.held_prompts = []
    await asked(stage, None, "other")
    first = stage.held_prompts
    assert (len(first), stage.loads) == (1, [])
    stage.held_prompts = []
    await asked(stage, None)
    assert (len(stage.held_prompts), stage.loads) == (1, [])
    stage.post(rendered(first[0]))
    assert stage.loads == ["other"]


async def test_who_came_earlier_for_another_model_does_not_take_the_place_of_one_that_has_just_come():
    stage = ModelStage(max_running=1)
    await asked(stage, None, None)
    stage.is_engine_stuck = True
    await asked(stage, "third", "other")
    commands = stage.hub.handle(ModelUnloaded(name=GUIDE.name), ModelLoaded(info=model_info(THIRD)))
    assert [each.model for each in commands if isinstance(each, PromptJob | e.LoadModel)] == [THIRD]
    (job,) = [each for each in commands if isinstance(each, PromptJob)]
    commands = stage.hub.handle(rendered(job))
    assert [each.model for each in commands if isinstance(each, e.LoadModel)] == [GUIDE]


# --- contexts that become smaller ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("max_context", "tokens"), [(64, 60), (40, 39), (21, 20)])
async def test_an_answer_goes_on_in_a_smaller_context_as_far_as_that_goes(max_context, tokens):
    """A prompt of one token and twenty of the answer are there when the server is killed."""
    stage = ModelStage()
    user, welcome = await welcomed(stage)
    await user.send(COUNT)
    await finish(stage, 20)
    stage.max_context = max_context
    await stage.restart()
    await finish(stage, 62)
    seen = received(await client(stage, session_id=welcome["session_id"]))
    assert text(seen) == "".join(f"{number} " for number in range(1, tokens + 1))
    (done,) = [each for each in seen if each["type"] == "done"]
    assert (done["finish_reason"], done["total_tokens"]) == ("length", tokens)
    assert len(stage.warnings) == (max_context < MAX_CONTEXT)


async def test_an_answer_that_does_not_fit_any_more_ends_and_may_be_asked_for_again():
    stage = ModelStage()
    user, welcome = await welcomed(stage)
    await user.send(COUNT)
    await finish(stage, 20)
    stage.max_context = 20
    await stage.restart()
    (end,) = [
        each
        for each in received(await client(stage, session_id=welcome["session_id"]))
        if each["type"] in ("done", "error")
    ]
    assert (end["code"], end["retryable"]) == ("model_oom", True)
    assert end["message"] == "memory for this context is missing now: it has 21 tokens, and 20 can be held"


@pytest.mark.parametrize(("max_context", "answer"), [(5, 4), (2, 1), (1, None)])
async def test_a_prompt_whose_model_comes_back_smaller_gets_the_answer_that_fits(max_context, answer):
    stage = ModelStage()
    stage.held_prompts = []
    (user,) = await asked(stage, None)
    stage.post(ModelLoaded(info=model_info(GUIDE, max_context=max_context)))
    stage.release_prompts()
    assert [each.max_new_tokens for each in stage.submitted] == ([answer] if answer else [])
    seen = received(user)
    assert [each.get("code", each["type"]) for each in seen] == (["start"] if answer else ["model_oom"])
    assert seen[0].get("max_tokens") == answer


# --- failures --------------------------------------------------------------------------------------------------------


async def test_requests_that_need_a_model_that_cannot_be_loaded_end():
    stage = HubStage(models=(OTHER,), selected=None, broken={"other": "damaged"})
    user, _ = await welcomed(stage)
    await user.send({**ASK, "model": "other"})
    error = await user.receive()
    assert (error["code"], error["seq"]) == ("model_failed", 1)


async def test_a_model_that_cannot_be_loaded_hurts_nobody_else():
    stage = ModelStage(broken={"other": "damaged"})
    first, second, third = await asked(stage, None, "other", None)
    await finish(stage)
    assert await types(first) == await types(third) == ["start", "token", "token", "done"]
    assert await types(second) == ["model_failed"]


async def test_a_prompt_that_is_rendered_for_a_model_that_fails_ends_too():
    stage = ModelStage(max_resident=2)
    await asked(stage, "other")
    await finish(stage)
    stage.held_prompts = []
    (user,) = await asked(stage, "other")
    stage.engine.unload("other")
    stage.broken["other"] = "damaged"
    stage.engine.load(OTHER)
    stage.post(e.Tick())
    assert await types(user) == ["model_failed"]
    stage.release_prompts()
    assert [each.model for each in stage.submitted] == [OTHER]


async def test_an_answer_is_not_continued_by_other_weights():
    stage = ModelStage()
    (user,) = await asked(stage, "other")
    await stage.step()
    stage.post(ModelLoaded(info=msgspec.structs.replace(model_info(OTHER), digest="f" * 64)))
    await finish(stage)
    assert await types(user) == ["start", "token", "model_failed"]
    assert stage.engine.keys == []


async def test_a_default_that_cannot_be_loaded_at_the_start_is_none():
    stage = ModelStage(broken={GUIDE.name: "damaged"})
    user, welcome = await welcomed(stage)
    assert (welcome["model"], welcome["capabilities"]["max_context"]) == (None, 0)
    await user.send(ASK)
    assert await types(user) == ["no_model"]


async def test_models_are_tried_in_turn_until_one_loads():
    stage = ModelStage(selected=None, broken={"other": "damaged", "third": "damaged"})
    stage.post(e.SelectModel(OTHER, instead=(THIRD, GUIDE)))
    _, welcome = await welcomed(stage)
    assert (stage.loads, welcome["model"]) == (["other", "third", GUIDE.name], GUIDE.name)
    assert stage.warnings == [
        "other cannot be loaded to begin with; trying third in its place",
        f"third cannot be loaded to begin with; trying {GUIDE.name} in its place",
    ]


async def test_who_names_no_model_where_none_is_the_default_is_told_what_is_there():
    stage = ModelStage(broken={GUIDE.name: "damaged"})
    await asked(stage, "other")
    (user,) = await asked(stage, None)
    assert (await user.receive())["message"] == (
        "no default model is loaded; name one of other, or an admin can switch"
    )


# --- the default -----------------------------------------------------------------------------------------------------


async def test_a_request_for_another_model_does_not_change_the_default():
    stage = ModelStage()
    await asked(stage, "other")
    await finish(stage)
    user, welcome = await welcomed(stage)
    await user.send({"type": "get_status"})
    await user.send(ASK)
    assert welcome["model"] == (await user.receive())["model"] == (await user.receive())["model"] == GUIDE.name


async def test_a_default_that_made_room_stays_the_default_and_is_loaded_for_the_next_who_names_none():
    stage = ModelStage(max_resident=1)
    await asked(stage, "other")
    await finish(stage)
    user, welcome = await welcomed(stage)
    assert (welcome["model"], welcome["capabilities"]["max_context"]) == (GUIDE.name, 64)
    assert (stage.hub.resident, stage.loads) == ({"other"}, ["other"])
    await user.send(ASK)
    assert models_of([user]) == [GUIDE.name]
    assert (stage.hub.resident, stage.loads) == ({GUIDE.name}, ["other", GUIDE.name])


async def test_a_default_that_cannot_be_loaded_again_just_now_stays_the_default():
    stage = ModelStage(max_resident=1)
    await asked(stage, "other")
    await finish(stage)
    stage.broken[GUIDE.name] = "not enough memory"
    (unlucky,) = await asked(stage, None)
    del stage.broken[GUIDE.name]
    (lucky,) = await asked(stage, None)
    assert await types(unlucky) == ["model_failed"]
    assert models_of([lucky]) == [GUIDE.name]


# --- switching -------------------------------------------------------------------------------------------------------


async def test_a_switch_waits_for_what_runs_and_holds_back_what_waits():
    stage = HubStage(models=(GUIDE, OTHER))
    one, _ = await welcomed(stage)
    two, _ = await welcomed(stage)
    await one.send(ASK)
    await stage.step()
    await two.send({"type": "switch_model", "name": "other"})
    await two.send(ASK)
    assert await types(two) == []
    await finish(stage)
    assert await types(one) == ["start", "token", "token", "done"]
    seen = [await two.receive() for _ in range(4)]
    assert [each.get("code", each["type"]) for each in seen] == ["loading", "loading", "model_switched", "start"]
    assert (seen[2]["seq"], seen[3]["model"]) == (1, "other")


async def test_after_a_switch_both_models_are_there_and_a_switch_back_reads_nothing():
    stage = ModelStage()
    await switched(stage, "other")
    assert stage.hub.resident == {GUIDE.name, "other"}
    admin = await switched(stage, GUIDE.name)
    assert await types(admin) == ["loading", "model_switched"]
    assert stage.loads == ["other", GUIDE.name]  # whether its folder is as it was, only the engine knows
    assert models_of(await asked(stage, None, "other")) == [GUIDE.name, "other"]


async def test_a_switch_to_a_model_that_is_being_loaded_for_a_request_waits_for_that_load():
    stage = ModelStage()
    stage.is_engine_stuck = True
    users = await asked(stage, "other")
    admin = await switched(stage, "other")
    stage.is_engine_stuck = False
    stage.post(e.Tick())
    assert stage.loads == ["other"]
    assert await types(admin) == ["loading", "loading", "model_switched"]
    assert models_of(users) == ["other"]


async def test_who_asked_for_a_switch_hears_of_no_other_load():
    stage = ModelStage()
    stage.is_engine_stuck = True
    admin = await switched(stage, "other")
    stage.post(ModelProgress(name="third", bytes=1, total_bytes=9))
    stage.post(ModelLoaded(info=model_info(THIRD)))
    assert await types(admin) == ["loading"]
    stage.is_engine_stuck = False
    stage.post(e.Tick())
    assert await types(admin) == ["loading", "model_switched"]
    assert stage.hub.resident == {GUIDE.name, "other", "third"}


async def test_a_failed_switch_keeps_the_old_model():
    stage = HubStage(models=(GUIDE, OTHER), broken={"other": "its files are damaged"})
    user, _ = await welcomed(stage)
    await user.send({"type": "switch_model", "model_path": "var/models/other"})
    seen = [await user.receive() for _ in range(len(user.frames))]
    assert seen[-1]["code"] == "model_failed"
    assert seen[-1]["message"] == "its files are damaged"
    assert "seq" not in seen[-1]
    await user.send(ASK)
    start = await user.receive()
    assert (start["type"], start["model"]) == ("start", GUIDE.name)


async def test_a_model_that_cannot_be_read_anew_serves_on_as_it_was_read():
    stage = ModelStage(max_running=1)
    await switched(stage, "other")
    await asked(stage, GUIDE.name)
    stage.broken[GUIDE.name] = "its files are damaged"
    admin = await switched(stage, GUIDE.name)
    (waiting,) = await asked(stage, GUIDE.name)
    await finish(stage)
    assert await types(admin) == ["loading", "model_failed"]
    assert stage.hub.resident == {GUIDE.name, "other"}
    assert models_of([waiting]) == [GUIDE.name]


async def test_a_model_that_is_not_there_cannot_be_switched_to():
    user, _ = await welcomed(HubStage())
    await user.send({"type": "switch_model", "name": "nope"})
    assert await types(user) == ["model_not_found"]


async def test_only_admins_switch():
    stage = HubStage(models=(GUIDE, OTHER))
    user = await stage.connect()
    stage.post(e.Attach(user.number, "somebody", "user", m.Hello()))
    stage.post(e.Receive(user.number, m.SwitchModel(name="other")))
    stage.post(e.Receive(user.number, m.DeleteModel(model_name="other")))
    assert await types(user) == ["welcome", "forbidden", "forbidden"]


async def test_a_newer_wish_for_a_model_replaces_the_older_one_of_the_session():
    stage = HubStage(models=(GUIDE, OTHER))
    user, _ = await welcomed(stage)
    await user.send(ASK)
    for _ in range(3):
        await user.send({"type": "switch_model", "name": "other"})
    await finish(stage)
    seen = await types(user)
    assert (seen.count("conflict"), seen.count("model_switched")) == (2, 1)


async def test_no_switch_begins_while_the_server_stops():
    stage = HubStage(models=(GUIDE, OTHER))
    user, _ = await welcomed(stage)
    stage.post(e.Drain())
    await user.send({"type": "switch_model", "name": "other"})
    assert await types(user) == []


async def test_requests_taken_while_the_folders_are_looked_at_do_not_wait_for_ever():
    stage = HubStage(models=(), selected=None)
    admin, _ = await welcomed(stage)
    user, _ = await welcomed(stage)
    await admin.send({"type": "switch_model", "name": "nope"})
    await user.send(ASK)
    await finish(stage)
    assert await types(admin) == ["model_not_found"]
    assert await types(user) == ["no_model"]


async def test_folders_that_cannot_be_read_refuse_the_switch_and_hold_up_nobody():
    stage = HubStage(models=(GUIDE, OTHER))
    stage.scans_fail = True
    user, _ = await welcomed(stage)
    await user.send({"type": "switch_model", "name": "other"})
    await user.send(ASK)
    await finish(stage)
    assert await types(user) == ["internal", "start", "token", "token", "done"]


# --- what may be done with them --------------------------------------------------------------------------------------


async def test_load_on_demand_can_be_switched_off():
    user, _ = await welcomed(HubStage(models=(GUIDE, OTHER), load_on_demand=False))
    await user.send({**ASK, "model": "other"})
    assert await types(user) == ["model_not_found"]


async def test_without_load_on_demand_users_get_what_is_in_memory_and_nothing_else():
    stage = ModelStage(load_on_demand=False)
    await switched(stage, "other")
    *served, refused = await asked(stage, GUIDE.name, "other", None, "third")
    assert models_of(served) == [GUIDE.name, "other", "other"]
    assert await types(refused) == ["model_not_found"]


async def test_without_load_on_demand_a_request_ends_when_its_model_makes_room_before_its_turn():
    stage = ModelStage(load_on_demand=False, max_running=1)
    await switched(stage, "other")
    _, late = await asked(stage, GUIDE.name, GUIDE.name)
    stage.post(ModelUnloaded(name=GUIDE.name))
    assert await types(late) == ["queue", "model_not_found"]


@pytest.mark.parametrize("is_resident", [True, False], ids=["resident", "being loaded"])
async def test_a_model_that_is_needed_is_not_deleted(is_resident):
    stage = ModelStage()
    stage.is_engine_stuck = not is_resident
    await asked(stage, "other")
    await finish(stage)
    admin, _ = await welcomed(stage)
    for name in (GUIDE.name, "other", "third"):
        await admin.send({"type": "delete_model", "model_name": name})
    assert await types(admin) == ["conflict", "conflict", "bad_request"]  # what the stage's folders say to the last


async def test_a_model_that_made_room_is_not_deleted_while_a_request_needs_it():
    stage = ModelStage(max_resident=1)
    stage.held_prompts = []
    await asked(stage, "other")
    assert stage.engine.unload("other")
    stage.post(e.Tick())
    assert stage.hub.resident == frozenset()
    admin, _ = await welcomed(stage)
    await admin.send({"type": "delete_model", "model_name": "other"})
    assert await types(admin) == ["conflict"]


# --- after a kill ----------------------------------------------------------------------------------------------------


async def test_after_a_kill_every_stream_goes_on_on_its_own_model():
    stage = ModelStage()
    names = [GUIDE.name, "other", "third"]
    users = [await welcomed(stage) for _ in names]
    for (user, _), name in zip(users, names, strict=True):
        await user.send({**COUNT, "model": None if name == GUIDE.name else name})
    await finish(stage, 20)
    await stage.restart()
    assert sorted(stage.loads) == [GUIDE.name, "other", "third"]
    await finish(stage, 62)
    for (_, welcome), name in zip(users, names, strict=True):
        seen = received(await client(stage, session_id=welcome["session_id"]))
        accent = "" if name == GUIDE.name else name
        assert text(seen) == "".join(f"{number}{accent} " for number in range(1, 61))
        assert [each["exact"] for each in seen if each.get("code") == "resumed_after_restart"] == [True]
