"""What transformers itself can do: `generate()`, and its continuous batching. A contestant's side; see `remote`."""

from __future__ import annotations

import sys
from typing import Any

import torch
import transformers
from transformers import ContinuousBatchingConfig, GenerationConfig

from bench.engines.remote import TIMEOUT_S, serve
from llmws.engine import memory

_PAGE_TOKENS = 256
"""The default of transformers."""


class Generate:
    """`generate()`, of one prompt or of a batch of equally long ones."""

    def __init__(self, folder: str) -> None:
        self._network: Any = transformers.AutoModelForCausalLM.from_pretrained(folder)

    def generate(self, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        """Greedy ids, of all prompts as one batch."""
        ids = torch.tensor(prompts)
        output: torch.Tensor = self._network.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False
        )
        return output[:, ids.shape[1] :].tolist()

    def estimate_ratio(self, prompt: list[int]) -> float:
        """Our estimate of what a context of these ids takes, over what the cache of transformers holds of it."""
        with torch.inference_mode():
            cache = self._network(torch.tensor([prompt]), use_cache=True).past_key_values
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        config = self._network.config.to_dict()
        estimated = memory.cache_bytes(config, dtype_bytes=self._network.dtype.itemsize, context=len(prompt))
        return estimated / int(held)


class Continuous:
    """The manager of transformers' continuous batching, with room for all streams, kept over the whole run."""

    def __init__(self, folder: str, streams: str, stream_tokens: str) -> None:
        network: Any = transformers.AutoModelForCausalLM.from_pretrained(folder)
        self._manager = network.init_continuous_batching(
            generation_config=GenerationConfig(do_sample=False, eos_token_id=-1),
            continuous_batching_config=ContinuousBatchingConfig(
                num_blocks=int(streams) * (-(-int(stream_tokens) // _PAGE_TOKENS) + 1)
            ),
        )
        self._manager.start()

    def generate(self, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        """Greedy ids of requests that come at once."""
        keys = self._manager.add_requests(inputs=prompts, max_new_tokens=new_tokens)
        found: dict[str, list[int]] = {}
        while len(found) < len(keys):
            output = self._manager.get_result(timeout=TIMEOUT_S)
            if output is None or output.error is not None:
                raise RuntimeError(f"continuous batching ended: {output and output.error}")
            if output.is_finished():
                found[output.request_id] = list(output.generated_tokens)
        return [found[key] for key in keys]


def main() -> None:
    """`python -m bench.engines.by_transformers FD generate|continuous FOLDER …`."""
    fd, kind, *arguments = sys.argv[1:]
    transformers.logging.disable_progress_bar()
    if kind == "generate":
        static = Generate(*arguments)
        serve(int(fd), {"generate": static.generate, "estimate_ratio": static.estimate_ratio})
    else:
        continuous = Continuous(*arguments)
        serve(int(fd), {"generate": continuous.generate})


if __name__ == "__main__":
    main()
