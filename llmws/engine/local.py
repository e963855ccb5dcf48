"""The engine of this machine.

Invariant: importing this module does not import torch; the engine's own thread does, at its first load.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from llmws.config import LimitsSection, OptimizationSection
from llmws.engine.runner import Loader
from llmws.engine.worker import Worker

log = logging.getLogger(__name__)


class LocalEngine(Worker):
    """An `Engine` that runs models with torch.

    Args:
        optimization: device, dtype, threads and the share of memory to use.
        limits: bounds on context and on requests at once.
        cache_dir: where torch keeps what it compiles, which it runs again unasked: nobody else may write there. None:
            where it likes, a folder of the account in the system's temporary folder.
    """

    def __init__(
        self, optimization: OptimizationSection, limits: LimitsSection, *, cache_dir: Path | None = None
    ) -> None:
        super().__init__(lambda: transformers_loader(optimization, limits, cache_dir=cache_dir))


def transformers_loader(
    optimization: OptimizationSection, limits: LimitsSection, *, cache_dir: Path | None = None
) -> Loader:
    """Imports torch, which takes seconds, and makes the loader, in the thread that will load."""
    if cache_dir is not None:
        cache_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_dir)
    log.info("importing torch")
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
