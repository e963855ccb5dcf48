"""Training data, recipe and evaluation of the guide model, used by `tools/train_guide.py`."""
