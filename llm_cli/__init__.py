"""`llm`, the terminal chat: one-shot answers and an interactive session, over `llmws.client`."""
