"""A conversation as a tree: each message follows its parent, and every path from a beginning to a leaf is a branch.

Pure: knows the messages of `history` and no server. Invariant: a branch holds each message once, oldest first.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmws.protocol.messages import HistoryMessage


def branch(messages: Sequence[HistoryMessage], leaf_id: str | None = None) -> list[HistoryMessage]:
    """The messages from a beginning to a leaf.

    Args:
        messages: of the conversation, oldest first; where older ones are missing, the branch begins later.
        leaf_id: None for what a prompt without `parent_id` follows: the newest answer or imported message.

    Raises:
        KeyError: `leaf_id` names none of the messages.
    """
    by_id = {message.id: message for message in messages}
    if leaf_id is None:
        ends = (each.id for each in reversed(messages) if each.role == "assistant" or not each.request_id)
        leaf_id = next(ends, None)
    elif leaf_id not in by_id:
        raise KeyError(leaf_id)
    found: list[HistoryMessage] = []
    while leaf_id is not None and (message := by_id.pop(leaf_id, None)) is not None:
        found.append(message)
        leaf_id = message.parent_id
    return found[::-1]


def question(messages: Sequence[HistoryMessage], request_id: str | None = None) -> HistoryMessage | None:
    """The question that a request answered, or the one asked last, answered or not; None where there is none.

    A request that regenerated an answer has no question of its own: its answer's parent is meant then.
    """
    last = next((each for each in reversed(messages) if request_id in (None, each.request_id)), None)
    path = [] if last is None else branch(messages, last.id)
    return next((each for each in reversed(path) if each.role == "user"), None)
