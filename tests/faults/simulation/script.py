"""What the model says to what it is asked: a function of the question, so that everybody knows what to expect."""

from __future__ import annotations

import functools
import random
import zlib

from llmws.engine.scripted import Step
from llmws.protocol import ErrorCode

_PIECES = ("a", "the ", "ü", "鯨 ", "🜚", "word ", "\n", "", "\\", '"', "long-winded explanation of something ")


def answer_ids(question: str) -> int:
    """The token id that stands for a question."""
    return zlib.crc32(question.encode())


@functools.lru_cache(maxsize=4096)
def steps_for(token_id: int) -> tuple[Step, ...]:
    """The answer's steps: none to three tokens each, some of which say nothing; one answer in twelve breaks off."""
    rng = random.Random(token_id)
    steps = [
        Step(tuple((rng.randrange(1, 50_000), rng.choice(_PIECES)) for _ in range(rng.choice((0, 1, 1, 1, 2, 3)))))
        for _ in range(rng.choice((1, 3, 8, 20, 60)))
    ]
    if rng.random() < 1 / 12:
        return (*steps, Step(error=ErrorCode.MODEL_FAILED))
    return (*steps, Step(((0, ""),), finish="stop"))


def whole_text(question: str) -> str:
    """What the answer says if nothing ends it before its end."""
    return "".join(text for step in steps_for(answer_ids(question)) for _, text in step.tokens)


def breaks_off(question: str) -> bool:
    """Whether the model fails at the end of the answer."""
    return steps_for(answer_ids(question))[-1].error is not None
