"""The model card of the guide, written from measured figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from guide.evaluate import Verdict
from guide.recipe import Recipe

# What a trained model has to reach on the held-out sets, in percent.
BARS = {"ordinary": 80.0, "refuse": 85.0}

_CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
language: en
---

# llmws-guide

The small built-in model of llmws. It answers questions about llmws 0.1.0 and refuses everything else, so that a
fresh machine without network can show real sessions on a real model. A stock `LlamaForCausalLM`; this file is
written by `tools/train_guide.py` (`make guide`), and the figures below are from that run.

| | |
|---|---|
| parameters | {parameters:,} (bf16, input and output embeddings shared) |
| layers, width, heads, inner width | {layers}, {width}, {heads}, {inner} |
| vocabulary | {vocabulary:,} (byte-level BPE) |
| context | {context:,} tokens |
| training | {steps:,} steps, {seconds:.0f} CPU-seconds on one thread, fp32, from scratch |

## Data

All of it is written for this model and lies in `tools/guide/`.

- `topics/`: {topics} topics, each with one answer and with patterns of its questions. A pattern such as
  `{{start|run}} the server` stands for all its variants; verb and noun phrases are also put into common frames
  ("how do I …", "what is …").
- `free.toml`: free wordings of the topics, without the product's own terms.
- `negatives.toml`: what is none of its business: foreign things with the product's verbs ("reset my iphone"),
  general knowledge, code, small requests, and the product's own words in another sense (port wine, session musician,
  model railway). Besides, questions of topics in which every content word was replaced by a foreign noun, and
  questions about invented words.
- `synonyms.toml`: words that may stand for each other, additions before and after, and the content words.
- Typing mistakes, dropped small words, synonyms and additions are drawn anew for every line and grow with the
  training.

## Recipe

AdamW, peak rate {peak_rate:g} with cosine decay, loss on the answer only. Of {full_every} batches {cut_batches} hold
only the first tokens of the answers, up to where they differ; those tokens weigh {weight:g} times as much as the
rest. {refusal:.0%} of the lines are to be refused. The tokenizer is learned from questions about llmws and the answers
alone: foreign words fall into many pieces, and that is how the model knows them. The chat template makes lower case,
drops punctuation and renders only the last user turn: earlier turns and a system prompt would mislead a model of this
size.

## Measured, held out

Questions written from the list of topics alone, apart from the training lines. Greedy answers; right means the
answer of the expected topic, for `refuse` the refusal.

{table}

`ordinary` is common wording ({bars[ordinary]:.0f} % is asked for), `refuse` is foreign questions, among them ones
with the product's words ({bars[refuse]:.0f} %), `paraphrase` is free wording, for which no figure is asked. A line
that equals a held-out question after normalisation never enters training; the patterns could have produced
{reachable} of the {total} held-out questions. Without these the figures are {strict}.

## Limits

English only. It has learned answers, not reasoning: a question in free words may get the answer of a neighbouring
topic or a refusal, and a foreign question with words of llmws may get an answer about llmws. It keeps no thread of
conversation and follows no system prompt. Lines of more than some 80 words were not trained on: pasted text is
mostly refused, but may get a muddled answer.
"""


@dataclass(frozen=True)
class Figures:
    """What a training run measured.

    Attributes:
        verdicts: by held-out set.
        reachable: held-out questions that the training patterns could have produced.
        topics: how many there are.
        seconds: CPU time of data, tokenizer and training.
    """

    verdicts: Mapping[str, Sequence[Verdict]]
    reachable: frozenset[str]
    topics: int
    seconds: float


def share(rows: Sequence[Verdict]) -> float:
    """Return the percentage of right verdicts."""
    return 100.0 * sum(row.right for row in rows) / max(1, len(rows))


def table(verdicts: Mapping[str, Sequence[Verdict]]) -> str:
    """Return a Markdown table of the sets."""
    lines = ["| set | questions | right | answered word for word |", "|---|---|---|---|"]
    for name, rows in verdicts.items():
        exact = 100.0 * sum(row.exact for row in rows) / max(1, len(rows))
        lines.append(f"| {name} | {len(rows)} | {share(rows):.1f} % | {exact:.1f} % |")
    return "\n".join(lines)


def write(folder: Path, parameters: int, recipe: Recipe, figures: Figures) -> None:
    """Write README.md into the model folder."""
    verdicts = figures.verdicts
    strict = {name: [row for row in rows if row.question not in figures.reachable] for name, rows in verdicts.items()}
    text = _CARD.format(
        **asdict(recipe),
        parameters=parameters,
        topics=figures.topics,
        seconds=figures.seconds,
        cut_batches=recipe.full_every - 1,
        weight=1 / recipe.late_weight,
        refusal=recipe.refusal_share,
        table=table(verdicts),
        bars=BARS,
        reachable=len(figures.reachable),
        total=sum(len(rows) for rows in verdicts.values()),
        strict=", ".join(f"{name} {share(rows):.1f} % of {len(rows)}" for name, rows in strict.items()),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
