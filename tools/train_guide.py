"""Train the guide model from scratch, measure it on the held-out questions, and write its folder and report.

    python tools/train_guide.py            # train, evaluate, write models/llmws-guide/
    python tools/train_guide.py --eval     # evaluate the model that is there

One thread, fp32, no network. The same machine and seed give the same weights. A line of progress goes to stdout every
few seconds of CPU time.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from guide import report
from guide.data import REFUSAL, REFUSAL_ANSWER, Curriculum, load_heldout, load_topics, normalise
from guide.evaluate import Verdict, judge
from guide.model import END, SPECIAL, build, prompt_ids, save, train_tokenizer
from guide.recipe import Recipe, parse
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import LlamaForCausalLM

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "models" / "llmws-guide"
HELDOUT = ROOT / "tools" / "guide" / "heldout"


@dataclass(frozen=True)
class Batch:
    """Right-padded token ids, and the weight of each position as a target; both [rows, length]."""

    ids: torch.Tensor
    weights: torch.Tensor


def answers_by_topic() -> dict[str, str]:
    """Return the answer text of every topic, the refusal included."""
    answers = {topic.id: topic.answer for topic in load_topics().values()}
    answers[REFUSAL] = REFUSAL_ANSWER
    return answers


def deciding_tokens(encoded: Mapping[str, list[int]]) -> dict[str, int]:
    """Return for each topic how many leading answer tokens tell it from all others, and one more."""
    counts = {}
    for topic, ids in encoded.items():
        others = [other for name, other in encoded.items() if name != topic]
        shared = max(_common_prefix(ids, other) for other in others)
        counts[topic] = max(3, shared + 2)
    return counts


def _common_prefix(left: list[int], right: list[int]) -> int:
    for i, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return i
    return min(len(left), len(right))


class Batches:
    """Turns the curriculum into batches of similar lengths.

    Most batches hold only the first tokens of the answers, which decide the topic; every `full_every`-th holds whole
    answers.
    """

    def __init__(
        self, recipe: Recipe, curriculum: Curriculum, tokenizer: Tokenizer, answers: Mapping[str, str]
    ) -> None:
        self.recipe = recipe
        self.curriculum = curriculum
        self.tokenizer = tokenizer
        end = SPECIAL.index(END)
        self.encoded = {topic: [*tokenizer.encode(answer).ids, end] for topic, answer in answers.items()}
        self.deciding = deciding_tokens(self.encoded)
        self.rng = random.Random(recipe.seed)

    def pool(self) -> list[Batch]:
        """Return the next `recipe.pool` batches, shuffled."""
        full = self.recipe.pool // self.recipe.full_every
        batches = [
            *self._cut(full, self.recipe.full_batch, whole=True),
            *self._cut(self.recipe.pool - full, self.recipe.batch, whole=False),
        ]
        self.rng.shuffle(batches)
        return batches

    def _cut(self, count: int, size: int, *, whole: bool) -> Iterator[Batch]:
        rows: list[tuple[list[int], list[int], int]] = []
        while len(rows) < count * size:
            sample = self.curriculum.sample()
            if whole and sample.topic == REFUSAL and self.rng.random() < 0.6:
                continue
            prompt = prompt_ids(self.tokenizer, sample.question)[:160]
            answer = self.encoded[sample.topic]
            deciding = self.deciding[sample.topic]
            if not whole:
                answer = answer[:deciding]
            rows.append((prompt, answer, deciding))
        rows.sort(key=lambda row: len(row[0]) + len(row[1]))
        for begin in range(0, len(rows), size):
            yield self._stack(rows[begin : begin + size])

    def _stack(self, rows: list[tuple[list[int], list[int], int]]) -> Batch:
        length = max(len(prompt) + len(answer) for prompt, answer, _ in rows)
        ids = torch.zeros(len(rows), length, dtype=torch.long)
        weights = torch.zeros(len(rows), length)
        for i, (prompt, answer, deciding) in enumerate(rows):
            start, stop = len(prompt), len(prompt) + len(answer)
            ids[i, :stop] = torch.tensor(prompt + answer)
            weights[i, start:stop] = self.recipe.late_weight
            weights[i, start : start + deciding] = 1.0
        return Batch(ids, weights)


def loss_of(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """Return the weighted mean cross-entropy of the answer tokens.

    Padding is on the right and attention causal, so no mask is needed; logits are computed for targets only.
    """
    hidden = model.model(input_ids=batch.ids[:, :-1], use_cache=False).last_hidden_state
    chosen = batch.weights[:, 1:] > 0
    logits = model.lm_head(hidden[chosen])
    losses = functional.cross_entropy(logits, batch.ids[:, 1:][chosen], reduction="none")
    weights = batch.weights[:, 1:][chosen]
    return (losses * weights).sum() / weights.sum()


def rate_at(step: int, recipe: Recipe) -> float:
    """Return the learning rate: linear warm-up, then cosine to 2 % of the peak."""
    if step < recipe.warmup:
        return recipe.peak_rate * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.peak_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def train(recipe: Recipe) -> tuple[LlamaForCausalLM, Tokenizer]:
    """Return the trained model (fp32, in evaluation mode) and its tokenizer."""
    torch.manual_seed(recipe.seed)
    topics, answers = load_topics(), answers_by_topic()
    excluded = [normalise(question) for rows in load_heldout().values() for _, question in rows]
    shares = {"refusal_share": recipe.refusal_share, "free_share": recipe.free_share}
    curriculum = Curriculum(topics, recipe.seed, excluded, **shares)
    lexicon = Curriculum(topics, recipe.seed + 1, excluded, **shares | {"refusal_share": 0.0})
    texts = [f" {lexicon.sample().question}" for _ in range(30_000)] + 10 * list(answers.values())
    tokenizer = train_tokenizer(texts, recipe.vocabulary)
    model = build(
        tokenizer.get_vocab_size(),
        width=recipe.width,
        layers=recipe.layers,
        heads=recipe.heads,
        inner=recipe.inner,
        context=recipe.context,
    )
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(topics)} topics", flush=True)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": recipe.decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.peak_rate, betas=(0.9, 0.98))
    batches = Batches(recipe, curriculum, tokenizer, answers)
    pending: list[Batch] = []
    begun, mean = time.process_time(), 0.0
    model.train()
    for step in range(recipe.steps):
        if not pending:
            curriculum.noise = min(1.0, 2.0 * step / recipe.steps)
            pending = batches.pool()
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, recipe)
        loss = loss_of(model, pending.pop())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        mean = loss.item() if step == 0 else 0.98 * mean + 0.02 * loss.item()
        if step % 100 == 99:
            spent = time.process_time() - begun
            print(f"step {step + 1}/{recipe.steps}  loss {mean:.3f}  {spent:.0f} CPU s", flush=True)
    return model.eval(), tokenizer


def load(folder: Path) -> tuple[LlamaForCausalLM, Tokenizer]:
    """Return the model (computing in fp32) and the tokenizer of a model folder."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))


def evaluate(model: LlamaForCausalLM, tokenizer: Tokenizer, heldout: Path) -> dict[str, list[Verdict]]:
    """Return the verdicts of every held-out set."""
    answers = answers_by_topic()
    return {name: judge(model, tokenizer, rows, answers) for name, rows in load_heldout(heldout).items()}


def main(argv: list[str] | None = None) -> int:
    """Train or evaluate, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eval", action="store_true", help="evaluate the existing model only")
    parser.add_argument("--out", type=Path, default=FOLDER, help="the model folder")
    parser.add_argument("--heldout", type=Path, default=HELDOUT, help="folder of the question sets")
    parser.add_argument("--show", action="store_true", help="also print the questions that failed")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="change a number of the recipe"
    )
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    begun = time.process_time()
    recipe = parse(options.set)
    if not options.eval:
        model, tokenizer = train(recipe)
        save(options.out, model, tokenizer)
    seconds = time.process_time() - begun
    model, tokenizer = load(options.out)
    verdicts = evaluate(model, tokenizer, options.heldout)
    print(report.table(verdicts))
    if options.show:
        for rows in verdicts.values():
            for row in rows:
                if not row.right:
                    print(f"{row.expected:>20} -> {row.topic:<20} {row.question}")
    if not options.eval:
        topics = load_topics()
        reachable = Curriculum(topics, recipe.seed).reachable(
            row.question for rows in verdicts.values() for row in rows
        )
        figures = report.Figures(verdicts, reachable, len(topics), seconds)
        report.write(options.out, sum(p.numel() for p in model.parameters()), recipe, figures)
        print(f"{seconds:.0f} CPU seconds; wrote {options.out.name}/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
