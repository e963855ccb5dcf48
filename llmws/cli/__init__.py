"""`llmws`: the command line of the server. Torch, uvicorn and prompt_toolkit are imported only by the commands that need them."""

from llmws.cli.main import main

__all__ = ["main"]
