"""llmws: a self-hosted LLM session server and its clients."""

__version__ = "0.1.0"
