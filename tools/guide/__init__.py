"""Training data, recipe and evaluation of the guide model, used by `tools/train_guide.py`.

`topics/`, `free.toml`, `negatives.toml` and `synonyms.toml` are what it learns from. `TOPICS.md` lists the topics for
people who write questions. `dev/` may be looked at while tuning; `heldout/` is for measuring only.
"""
