"""What becomes the context of a session's next request, and what is recorded of each."""

import msgspec

from llmws.engine_api import Turn
from llmws.protocol import messages as m
from llmws.session.conversation import PAGE_CHARS, Conversation
from llmws.session.request import Request


def request(request_id: str, prompt: str | m.Prompt, answer: str = "") -> Request:
    made = Request(
        message=m.Inference(prompt=prompt),
        request_id=request_id,
        digest=b"",
        sampling=m.Sampling(),
        accepted_s=0.0,
        accepted_unix_s=7.0,
    )
    made.start_seq = 1
    made.add((1,), answer, now_s=0.0)
    return made


SESSION = "00000000-0000-4000-8000-000000000001"


class Talk:
    """A conversation."""

    def __init__(self) -> None:
        self.conversation = Conversation(SESSION)

    def finish(self, each: Request, finish_reason: str | None = "stop") -> None:
        self.conversation.finish(each, finish_reason=finish_reason, model="m", now_s=7.0)

    def turns(self, prompt: str | m.Prompt) -> list[tuple[str, str]]:
        return [(turn.role, turn.content) for turn in self.conversation.context(request("now", prompt))]


def test_earlier_turns_come_before_the_question():
    talk = Talk()
    talk.finish(request("a", "one", "eins"))
    assert talk.turns("two") == [("user", "one"), ("assistant", "eins"), ("user", "two")]


def test_a_system_message_stays_until_it_is_replaced_and_an_empty_one_takes_it_away():
    talk = Talk()
    talk.finish(request("a", m.Prompt(system="be brief", user="one"), "eins"))
    assert talk.turns("two")[0] == ("system", "be brief")
    assert talk.turns(m.Prompt(system="be long", user="two"))[0] == ("system", "be long")
    assert talk.turns(m.Prompt(system="", user="two"))[0] == ("user", "one")


def test_a_question_that_ended_in_an_error_is_kept_but_is_no_context():
    talk = Talk()
    talk.finish(request("a", "too long"), finish_reason=None)
    assert talk.turns("two") == [("user", "two")]
    page = talk.conversation.page(before_id=None, limit=9)
    assert page is not None
    assert [each.content for each in page.messages] == ["too long"]


def test_a_system_message_of_a_request_that_failed_does_not_stay():
    talk = Talk()
    talk.finish(request("a", m.Prompt(system="far too long", user="one")), finish_reason=None)
    assert talk.turns("two") == [("user", "two")]


def test_a_request_that_never_started_leaves_no_answer():
    talk = Talk()
    waiting = request("a", "one")
    waiting.start_seq = 0
    talk.finish(waiting, finish_reason="cancelled")
    assert talk.turns("two") == [("user", "two")]
    page = talk.conversation.page(before_id=None, limit=9)
    assert page is not None
    assert [each.role for each in page.messages] == ["user"]


def test_a_page_is_bounded_by_its_text_too():
    talk = Talk()
    for number in range(4):
        talk.finish(request(f"r{number}", "x" * (PAGE_CHARS // 3), "short"))
    page = talk.conversation.page(before_id=None, limit=99)
    assert page is not None
    assert (len(page.messages), page.more) == (5, True)
    assert talk.conversation.page(before_id="nobody", limit=9) is None


def test_messages_of_the_client_are_the_whole_context_and_are_not_kept():
    talk = Talk()
    talk.finish(request("a", "one", "eins"))
    own = Request(
        message=m.Inference(messages=[m.ChatMessage(role="user", content="alone")]),
        request_id="b",
        digest=b"",
        sampling=m.Sampling(),
        accepted_s=0.0,
        accepted_unix_s=7.0,
    )
    assert talk.conversation.context(own) == (Turn(role="user", content="alone"),)
    talk.finish(own)
    assert len(talk.conversation.messages) == 2


def test_a_turn_is_recorded_once():
    talk = Talk()
    one = request("a", "one", "eins")
    talk.finish(one)
    talk.finish(one)
    assert len(talk.conversation.messages) == 2


def test_it_comes_back_from_its_records():
    talk = Talk()
    talk.finish(request("a", m.Prompt(system="be brief", user="one"), "eins"))
    talk.conversation.configure(m.Sampling(temperature=0.1))
    append = talk.conversation.journal.take()
    assert append is not None
    again = Conversation(SESSION, records=append.records, next_n=append.records[-1].n + 1)
    assert again.messages == talk.conversation.messages
    assert again.settings == talk.conversation.settings == msgspec.structs.replace(again.settings)


def test_pages_are_counted_from_the_newest():
    talk = Talk()
    for number in range(3):
        talk.finish(request(f"r{number}", f"q{number}", f"a{number}"))
    page = talk.conversation.page(before_id=None, limit=2)
    assert page is not None
    assert ([each.content for each in page.messages], page.more) == (["q2", "a2"], True)
    page = talk.conversation.page(before_id=page.messages[0].id, limit=9)
    assert page is not None
    assert ([each.content for each in page.messages], page.more) == (["q0", "a0", "q1", "a1"], False)
