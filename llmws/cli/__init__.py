"""`llmws`: the command line of the server. Heavy packages are imported only by the commands that need them."""

from llmws.cli.main import main

__all__ = ["main"]
