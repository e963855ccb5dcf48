"""Branches of a conversation."""

import pytest

from llmws.client import branch, question
from llmws.protocol.messages import HistoryMessage


def said(id: str, parent_id: str | None, role: str, request_id: str | None) -> HistoryMessage:
    return HistoryMessage(
        id=id,
        parent_id=parent_id,
        role=role,
        content=id,
        request_id=request_id,
        model=None,
        created_at=0.0,
        finish_reason=None,
    )


#: One question with two answers, the first of them continued; then a second beginning whose answer failed.
TREE = [
    said("q1", None, "user", "a"),
    said("a1", "q1", "assistant", "a"),
    said("q2", "a1", "user", "b"),
    said("a2", "q2", "assistant", "b"),
    said("a3", "q1", "assistant", "c"),
    said("q4", None, "user", "d"),
]


def ids(messages) -> list[str]:
    return [message.id for message in messages]


@pytest.mark.parametrize(
    ("leaf", "path"),
    [(None, ["q1", "a3"]), ("a2", ["q1", "a1", "q2", "a2"]), ("a3", ["q1", "a3"]), ("q1", ["q1"])],
)
def test_a_branch_goes_from_its_beginning_to_its_leaf(leaf, path):
    assert ids(branch(TREE, leaf)) == path


def test_an_empty_conversation_has_an_empty_branch_and_so_has_one_without_answers():
    assert branch([]) == []
    assert branch(TREE[:1]) == []


def test_the_newest_branch_may_end_in_an_imported_question():
    assert ids(branch([*TREE, said("q5", "a3", "user", None)])) == ["q1", "a3", "q5"]


def test_a_branch_whose_beginning_is_missing_begins_later():
    assert ids(branch(TREE[2:4])) == ["q2", "a2"]


def test_messages_that_name_each_other_as_parents_end():
    assert ids(branch([said("x", "y", "user", "a"), said("y", "x", "assistant", "a")])) == ["x", "y"]


def test_an_unknown_leaf_is_an_error():
    with pytest.raises(KeyError):
        branch(TREE, "nope")


@pytest.mark.parametrize(("request_id", "asked"), [("a", "q1"), ("b", "q2"), ("c", "q1"), (None, "q4"), ("x", None)])
def test_the_question_of_a_request_is_found(request_id, asked):
    found = question(TREE, request_id)
    assert (found and found.id) == asked
