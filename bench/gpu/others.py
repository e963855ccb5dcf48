"""What transformers itself does with the same folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from transformers import GenerationConfig

_PAGE_TOKENS: Final = 256
"""The default of transformers."""

_STEP_TOKENS: Final = 2_048
"""As many as a step of ours takes of a prompt. Where only the pages are given, some versions of transformers make steps
so large that all memory is used."""


class Transformers:
    """A model as `from_pretrained` loads it."""

    def __init__(self, folder: Path, *, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        self._network: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, device_map={"": device}
        )

    def generate_s(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> float:
        """Seconds that `generate()` takes for all prompts as one batch."""
        ids = torch.tensor(prompts, device=self._device)
        began_s = time.perf_counter()
        output = self._network.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
        )
        output.tolist()  # waits
        return time.perf_counter() - began_s

    def continuous_s(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> float:
        """Seconds that continuous batching takes for all prompts, its own start not counted.

        Raises:
            RuntimeError: a request failed.
        """
        stream_pages = -(-(len(prompts[0]) + new_tokens) // _PAGE_TOKENS) + 1
        manager = self._network.init_continuous_batching(
            generation_config=GenerationConfig(max_new_tokens=new_tokens, do_sample=False, eos_token_id=-1),
            continuous_batching_config=transformers.ContinuousBatchingConfig(
                num_blocks=len(prompts) * stream_pages, max_batch_tokens=_STEP_TOKENS
            ),
        )
        manager.start()
        try:
            self._taken(manager, prompts[:1], 2)
            began_s = time.perf_counter()
            self._taken(manager, prompts, new_tokens)
            return time.perf_counter() - began_s
        finally:
            manager.stop(block=True)

    def _taken(self, manager: Any, prompts: Sequence[Sequence[int]], new_tokens: int) -> None:  # noqa: ANN401
        keys = [manager.add_request(list(ids), max_new_tokens=new_tokens) for ids in prompts]
        done = 0
        while done < len(keys):
            output = manager.get_result(timeout=60)
            if output is None or output.error is not None:
                raise RuntimeError(f"continuous batching ended: {output and output.error}")
            done += output.is_finished()
