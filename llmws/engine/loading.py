"""From a model's folder to a runner.

Owns what is read and trusted. Knows no requests. Invariant: nothing but safetensors and JSON is read, no code from the
folder is run, and nothing is fetched.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils.logging import set_tqdm_hook

from llmws.config import LimitsSection, OptimizationSection
from llmws.engine import memory
from llmws.engine.devices import device_memory, placement, target
from llmws.engine.digest import model_digest, tokenizer_digest
from llmws.engine.fallback import FallbackRunner, Increments, check_sight, find_increments
from llmws.engine.measure import measured_footprint, whole_config
from llmws.engine.network import Network, device_errors, vocabulary
from llmws.engine.runner import DeviceLostError, Progress
from llmws.engine.sampler import SAMPLER_VERSION
from llmws.engine.vision import Vision, has_processor, load_vision
from llmws.engine.weights import tensor_bytes, weight_files, weights_bytes
from llmws.engine_api import ModelInfo, ModelRef
from llmws.errors import ModelInvalidError, ModelOutOfMemoryError
from llmws.tokenizer_files import MAX_CONFIG_BYTES, TokenizerFiles, read, read_tokenizer

log = logging.getLogger(__name__)

MAX_RUNNING = 4
"""Streams at once unless the operator sets a number: they are stepped one after another, so each one more slows all."""

_REPORT_BYTES = 2**24
"""Weights between two reports of progress, at least."""

_MAPPINGS = (transformers.MODEL_FOR_CAUSAL_LM_MAPPING, transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING)


class FallbackLoader:
    """A `Loader` of any transformers causal language model.

    Args:
        optimization: device, dtype, threads and the share of memory to use.
        limits: bounds on context and on requests at once.
    """

    def __init__(self, optimization: OptimizationSection, limits: LimitsSection) -> None:
        self._optimization = optimization
        self._limits = limits

    def fits(self, model: ModelRef) -> bool:
        """See `Loader.fits`."""
        devices, dtype = target(self._optimization)
        folder = Path(model.location)
        check_folder(folder)
        read_tokenizer(folder)
        needed = weights_bytes(folder, dtype_bytes=dtype.itemsize)
        readings = [device_memory(device) for device in devices]
        if needed > (total := sum(total for total, _ in readings)):
            message = f"the weights take {needed / 1e9:.1f} GB of memory; there are {total / 1e9:.1f} GB"
            raise ModelOutOfMemoryError(message)
        return needed <= sum(free for _, free in readings)

    def load(self, model: ModelRef, *, progress: Progress, reclaimable_bytes: int) -> FallbackRunner:
        """See `Loader.load`."""
        devices, dtype = target(self._optimization)
        folder = Path(model.location)
        log.info("loading %s in %s", model.name, dtype)
        check_folder(folder)
        files = read_tokenizer(folder)
        memory_before = {device: device_memory(device) for device in devices}
        where = placement(
            weights_bytes(folder, dtype_bytes=dtype.itemsize),
            {device: free for device, (_, free) in memory_before.items()},
        )
        with device_errors(model.name):
            with _reporting(folder, progress):
                network = _read_network(folder, dtype, where)
            return self._runner(model, network, files, memory_before, reclaimable_bytes)

    def _runner(
        self,
        model: ModelRef,
        network: Network,
        files: TokenizerFiles,
        memory_before: Mapping[torch.device, tuple[int, int]],
        reclaimable_bytes: int,
    ) -> FallbackRunner:
        """Tries the model out, measures it, and decides what it can promise.

        Total and free bytes of the devices are those from before the load: on CPU, weights that are mapped from their
        files count as free afterwards too.
        """
        increments = find_increments(network, vocabulary(network))
        footprint = measured_footprint(network, increments)
        held = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
        used = {tensor.device for tensor in network.parameters()}
        # On CPU what the old model will give back may be free already, for the same reason.
        reclaimable_bytes = reclaimable_bytes if network.device.type == "cuda" else 0
        budget_bytes = memory.budget(
            total_bytes=sum(memory_before[device][0] for device in used),
            free_bytes=sum(memory_before[device][1] for device in used) + reclaimable_bytes,
            utilization=self._optimization.memory_utilization,
            weights_bytes=held,
        )
        plan = memory.plan(
            footprint,
            budget_bytes=budget_bytes,
            positions=memory.positions(whole_config(network)),
            limit=self._limits.max_context,
        )
        folder = Path(model.location)
        vision = _find_vision(folder, network, increments, max_pixels=self._limits.max_image_pixels)
        info = ModelInfo(
            ref=model,
            digest=model_digest(folder),
            tokenizer_digest=tokenizer_digest(folder),
            engine=f"fallback/{SAMPLER_VERSION}",
            device=str(network.device),
            dtype=str(network.dtype).removeprefix("torch."),
            max_context=plan.max_context,
            max_running=self._limits.max_running or MAX_RUNNING,
            vocab_size=network.get_input_embeddings().num_embeddings,
            vision=vision is not None,
            image_tokens=vision.image_tokens if vision is not None else 0,
            flash_attention=str(network.config._attn_implementation).startswith("flash"),
        )
        log.info("%s: %s, continues by %s, context %d", model.name, info.device, increments.value, info.max_context)
        runner = FallbackRunner(
            network,
            files.tokenizer,
            info=info,
            eos_ids=_eos_ids(network, files),
            footprint=footprint,
            increments=increments,
            held_bytes=held,
            vision=vision,
        )
        runner.open_pool(budget_bytes)
        return runner


# --- files ---------------------------------------------------------------------------------------------------------


def check_folder(folder: Path) -> None:
    """Says what is wrong with a model before anything large is read.

    Raises:
        ModelInvalidError: and why.
    """
    try:
        config = json.loads(read(folder / "config.json", MAX_CONFIG_BYTES), object_hook=_without_other_files)
        model_type = config["model_type"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ModelInvalidError("there is no config.json that names a model_type") from None
    if model_type not in transformers.CONFIG_MAPPING:
        why = "it needs code of its own, which is never run" if "auto_map" in config else "its type is not known"
        raise ModelInvalidError(f"transformers {transformers.__version__} has no model type {model_type!r}: {why}")
    config_class = transformers.CONFIG_MAPPING[model_type]
    if not any(config_class in each for each in _MAPPINGS):
        raise ModelInvalidError(f"models of type {model_type!r} are not causal language models")
    if (folder / "adapter_config.json").exists():
        raise ModelInvalidError("it is an adapter for another model (adapter_config.json); merge the two first")
    weight_files(folder)


def _without_other_files(part: dict[str, Any]) -> dict[str, Any]:
    """A part of a configuration, unless it makes transformers read other files than those that were checked."""
    for key in ("configuration_files", "transformers_weights"):
        if key in part:
            raise ModelInvalidError(f"config.json names other files to read ({key})")
    return part


def _auto_class(folder: Path) -> Any:  # noqa: ANN401 - transformers' classes have no common type
    """What reads the model: with its part for images, if it has one. Of a family that is both, files decide."""
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    text, images = (type(config) in mapping for mapping in _MAPPINGS)
    if images and (has_processor(folder) or not text):
        return transformers.AutoModelForImageTextToText
    return transformers.AutoModelForCausalLM


def _find_vision(folder: Path, network: Network, increments: Increments, *, max_pixels: int) -> Vision | None:
    """What makes the model see, if it can; if not, the log says why, and it is served for text."""
    if not has_processor(folder):
        return None
    try:
        with device_errors("trying the model out on an image"):
            vision = load_vision(folder, network, max_pixels=max_pixels)
            check_sight(network, vision, increments)
    except DeviceLostError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a processor lacks, text goes on
        log.warning("%s takes no images: %s", folder.name, " ".join(str(error).split()))
        return None
    return vision


def _read_network(folder: Path, dtype: torch.dtype, where: dict[str, Any]) -> Network:
    """The model, in evaluation mode and with every weight from the files."""
    gc.collect()  # what a failed load left in a cycle
    network: Any
    found: Mapping[str, Any]
    network, found = _auto_class(folder).from_pretrained(
        folder,
        dtype=dtype,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
        **where,
    )
    # transformers would fill them with random numbers and go on.
    if missing := sorted((*found["missing_keys"], *(str(key) for key in found["mismatched_keys"]))):
        raise ModelInvalidError(f"the files lack {len(missing)} weights, among them {missing[0]}")
    network.eval()
    kept: Network = network
    return kept


@contextlib.contextmanager
def _reporting(folder: Path, progress: Progress) -> Iterator[None]:
    """Reports the bytes of the weights while transformers loads them: it walks over them in a progress bar."""
    sizes = {name: size for name, (_, size) in tensor_bytes(folder).items()}
    total = sum(sizes.values())

    def counted(items: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        done = reported = 0
        for name, item in items:
            yield name, item
            # Weights that are renamed on the way count when everything is there.
            done += sizes.get(name, 0)
            if done - reported >= max(_REPORT_BYTES, total // 100):
                progress(done, total)
                reported = done

    def hook(factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        return counted(args[0]) if kwargs.get("desc") == "Loading weights" else factory(*args, **kwargs)

    progress(0, total)
    previous = set_tqdm_hook(hook)
    try:
        yield
    finally:
        set_tqdm_hook(previous)
    progress(total, total)


# --- the model -----------------------------------------------------------------------------------------------------


def _eos_ids(network: Network, files: TokenizerFiles) -> frozenset[int]:
    """All ids that end a completion, wherever the model's files name them. What is no id is passed over."""
    named: list[object] = []
    if (text := files.named.get("eos_token")) is not None:
        named.append(files.tokenizer.token_to_id(text))
    for config in (network.generation_config, network.config, network.config.get_text_config()):
        value = getattr(config, "eos_token_id", None)
        named += value if isinstance(value, list) else [value]
    return frozenset(value for value in named if isinstance(value, int) and not isinstance(value, bool))
