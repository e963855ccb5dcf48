"""Greedy evaluation of a guide model on questions with known topics.

Knows answers only as texts. Invariant: an answer counts for the topic whose text it equals, or else shares most words
with; a question passes if that topic is one of those expected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from guide.data import normalise
from guide.model import END, PAD, prompt_ids


@dataclass(frozen=True)
class Verdict:
    """What became of one question."""

    question: str
    expected: str
    topic: str
    exact: bool

    @property
    def right(self) -> bool:
        """Whether the answer is that of an expected topic."""
        return self.topic in self.expected.split("|")


def generate(
    model: LlamaForCausalLM, tokenizer: Tokenizer, questions: Sequence[str], *, limit: int, batch: int = 256
) -> list[str]:
    """Return the greedy answers to raw `questions`, each of at most `limit` tokens."""
    pad, end = tokenizer.token_to_id(PAD), tokenizer.token_to_id(END)
    prompts = [prompt_ids(tokenizer, normalise(question)) for question in questions]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers = [""] * len(prompts)
    for begin in range(0, len(order), batch):
        rows = order[begin : begin + batch]
        width = max(len(prompts[i]) for i in rows)
        ids = torch.tensor([[pad] * (width - len(prompts[i])) + prompts[i] for i in rows])
        mask = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in rows])
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=mask, max_new_tokens=limit, do_sample=False, pad_token_id=pad, eos_token_id=end
            )
        for i, row in zip(rows, out[:, width:].tolist(), strict=True):
            answers[i] = tokenizer.decode(row[: row.index(end)] if end in row else row)
    return answers


def nearest(text: str, answers: Mapping[str, str]) -> tuple[str, bool]:
    """Return the topic whose answer is `text` or shares most words with it (Jaccard), and whether it is equal."""
    for topic, answer in answers.items():
        if text == answer:
            return topic, True
    bag = Counter(text.split())

    def overlap(answer: str) -> float:
        other = Counter(answer.split())
        return (bag & other).total() / max(1, (bag | other).total())

    return max(answers, key=lambda topic: overlap(answers[topic])), False


def judge(
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    rows: Sequence[tuple[str, str]],
    answers: Mapping[str, str],
) -> list[Verdict]:
    """Return a verdict for each (expected topics, raw question)."""
    limit = max(len(tokenizer.encode(answer).ids) for answer in answers.values()) + 2
    texts = generate(model, tokenizer, [question for _, question in rows], limit=limit)
    return [
        Verdict(question, expected, *nearest(text, answers))
        for (expected, question), text in zip(rows, texts, strict=True)
    ]
