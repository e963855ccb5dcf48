"""Turns contexts into token ids: chat templates in a bounded sandbox, tokenizers, and the process that runs them.

The server's side (`renderer`, `process`) talks in frames to the helper's (`worker`), where alone templates and
tokenizers are touched: a model's files are hostile until shown otherwise. Imports neither torch nor transformers
(AutoTokenizer would bring torch, several seconds); the results are tested equal to `apply_chat_template`. Knows nothing
of sessions or engines.
"""
