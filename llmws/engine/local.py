"""The engine of this machine.

Invariant: importing this module does not import torch; the engine's own thread does, at its first load.
"""

from __future__ import annotations

import os

from llmws.config import LimitsSection, OptimizationSection
from llmws.engine.runner import Loader
from llmws.engine.worker import Worker


class LocalEngine(Worker):
    """An `Engine` that runs models with torch.

    Args:
        optimization: device, dtype, threads and the share of memory to use.
        limits: bounds on context and on requests at once.
    """

    def __init__(self, optimization: OptimizationSection, limits: LimitsSection) -> None:
        super().__init__(lambda: transformers_loader(optimization, limits))


def transformers_loader(optimization: OptimizationSection, limits: LimitsSection) -> Loader:
    """Imports torch, which takes seconds, and makes the loader, in the thread that will load."""
    import_transformers(optimization)

    from llmws.engine.loading import TransformersLoader  # noqa: PLC0415 - imports torch

    return TransformersLoader(optimization, limits)


def import_transformers(optimization: OptimizationSection) -> None:
    """Imports torch and transformers as a server needs them: offline, quiet, and with a core left for others."""
    # Threads that spin while they wait for work would take the cores from the event loop. Read when OpenMP is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch  # noqa: PLC0415 - must find the environment above
    from transformers.utils import logging  # noqa: PLC0415 - likewise

    # All cores but one, which is the event loop's.
    torch.set_num_threads(optimization.threads or max(1, len(os.sched_getaffinity(0)) - 1))
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
