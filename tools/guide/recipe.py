"""Every number of the guide's training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """The numbers, changed for a trial by `--set name=value`.

    Attributes:
        seed: of the lines, their order and the first weights.
        vocabulary: entries of the tokenizer.
        width: of the hidden state.
        layers: transformer blocks.
        heads: attention heads, keys and values too.
        inner: width inside a block's gated unit.
        context: positions that the model claims; rotary positions need no training of their own.
        steps: optimizer steps.
        batch: lines a batch whose answers are cut to the deciding tokens.
        full_batch: lines a batch with whole answers.
        full_every: one batch in so many has whole answers.
        peak_rate: highest learning rate.
        warmup: steps to reach it.
        decay: weight decay of the matrices.
        late_weight: weight of the answer tokens after the deciding ones.
        refusal_share: share of lines that are to be refused.
        free_share: share of a topic's lines in free wording.
        pool: batches made and shuffled at a time.
    """

    seed: int = 7
    vocabulary: int = 3072
    width: int = 128
    layers: int = 4
    heads: int = 4
    inner: int = 384
    context: int = 2048
    steps: int = 3600
    batch: int = 96
    full_batch: int = 32
    full_every: int = 4
    peak_rate: float = 3e-3
    warmup: int = 60
    decay: float = 0.05
    late_weight: float = 0.25
    refusal_share: float = 0.42
    free_share: float = 0.3
    pool: int = 24


def parse(changes: list[str]) -> Recipe:
    """Return the recipe with `name=value` changes.

    Raises:
        ValueError: an unknown name, or a value that is not a number.
    """
    values: dict[str, int | float] = {}
    for change in changes:
        name, _, text = change.partition("=")
        default = getattr(Recipe, name, None)
        if not isinstance(default, (int, float)):
            raise ValueError(f"the recipe has no number called {name!r}")
        values[name] = type(default)(text)
    return Recipe(**values)  # type: ignore[arg-type]  # int and float fields get their own type above
