"""The models on this machine: finding, checking, choosing and deleting them. Knows nothing of engines."""

from llmws.catalog.catalog import Catalog, Problem
from llmws.catalog.choose import GUIDE, candidates, find
from llmws.catalog.names import ModelName

__all__ = ["GUIDE", "Catalog", "ModelName", "Problem", "candidates", "find"]
