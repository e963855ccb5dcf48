"""Turns contexts into token ids: chat templates in a bounded sandbox, tokenizers, and the thread that runs them.

Imports neither torch nor transformers (AutoTokenizer would bring torch, several seconds); the results are tested equal
to `apply_chat_template`. Knows nothing of sessions or engines.
"""

from llmws.prompt.thread import ThreadRenderer

__all__ = ["ThreadRenderer"]
