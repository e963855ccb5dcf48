"""From a model's folder to a network in memory.

Owns what is read and trusted. Knows neither tiers nor requests. Invariant: nothing but safetensors and JSON is read, no
code from the folder is run, and nothing is fetched.
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

from llmws.engine import memory
from llmws.engine.network import Network, device_errors
from llmws.engine.runner import DeviceLostError, Progress, StoppedError
from llmws.engine.vision import has_processor
from llmws.engine.weights import tensor_bytes
from llmws.errors import LlmwsError, ModelInvalidError
from llmws.tokenizer_files import MAX_CONFIG_BYTES, read

log = logging.getLogger(__name__)

_REPORT_BYTES = 2**24
"""Weights between two reports of progress, at least."""

MAX_LAYERS = 4096
"""A network is built layer by layer, even to count its weights."""

_MOST_SAID = 300
"""Characters of an error of transformers that are told."""

_MAPPINGS = (transformers.MODEL_FOR_CAUSAL_LM_MAPPING, transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING)


def check_folder(folder: Path) -> None:
    """Says what is wrong with a model before anything large is read, and before others make room for it.

    Raises:
        ModelInvalidError: and why.
    """
    check_config(folder)
    tensor_bytes(folder)


def check_config(folder: Path) -> None:
    """Says what is wrong with a model's configuration, before transformers sees it.

    Raises:
        ModelInvalidError: and why.
    """
    try:
        config = json.loads(read(folder / "config.json", MAX_CONFIG_BYTES), object_hook=_checked)
        model_type = config["model_type"]
    except (ValueError, KeyError, TypeError, RecursionError):
        model_type = None
    if not isinstance(model_type, str):
        raise ModelInvalidError("there is no config.json that names a model_type")
    if model_type not in transformers.CONFIG_MAPPING:
        why = "it needs code of its own, which is never run" if "auto_map" in config else "its type is not known"
        raise ModelInvalidError(f"transformers {transformers.__version__} has no model type {model_type!r}: {why}")
    config_class = transformers.CONFIG_MAPPING[model_type]
    if not any(config_class in each for each in _MAPPINGS):
        raise ModelInvalidError(f"models of type {model_type!r} are not causal language models")
    if (folder / "adapter_config.json").exists():
        raise ModelInvalidError("it is an adapter for another model (adapter_config.json); merge the two first")


def _checked(part: dict[str, Any]) -> dict[str, Any]:
    """A part of a configuration, unless it makes transformers read files that were not checked, or build for ever."""
    for key in ("configuration_files", "transformers_weights"):
        if key in part:
            raise ModelInvalidError(f"config.json names other files to read ({key})")
    for key in memory.LAYERS:
        if isinstance(layers := part.get(key), int | float) and layers > MAX_LAYERS:
            raise ModelInvalidError(f"config.json asks for more than {MAX_LAYERS} layers ({key})")
    if (quantised := part.get("quantization_config")) is not None:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else None
        raise ModelInvalidError(f"its weights are quantised ({method}), which this version does not read")
    return part


@contextlib.contextmanager
def blamed_on_files(folder: Path) -> Iterator[None]:
    """Turns whatever transformers raises over a folder into an error that says why, in one short line.

    Raises:
        ModelInvalidError: in the place of anything that was not raised on purpose.
    """
    try:
        with device_errors(folder.name):
            yield
    except (LlmwsError, DeviceLostError, StoppedError):
        raise
    except Exception as error:
        log.debug("%s cannot be read", folder.name, exc_info=True)
        why = " ".join(str(error).replace(str(folder), folder.name).split())
        line = "".join(c if c.isprintable() else " " for c in why[:_MOST_SAID])
        raise ModelInvalidError(f"transformers cannot read it: {type(error).__name__}: {line}") from None


def read_config(folder: Path) -> Any:  # noqa: ANN401 - transformers' configurations, each its own class
    """The configuration of a folder that `check_config` passed."""
    return transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def auto_class(folder: Path, config: Any) -> Any:  # noqa: ANN401 - transformers' classes have no common type
    """What reads the model: with its part for images, if it has one. Of a family that is both, files decide."""
    text, images = (type(config) in mapping for mapping in _MAPPINGS)
    if images and (has_processor(folder) or not text):
        return transformers.AutoModelForImageTextToText
    return transformers.AutoModelForCausalLM


def read_network(folder: Path, dtype: torch.dtype, where: dict[str, Any]) -> Network:
    """The model, in evaluation mode and with every weight from the files."""
    gc.collect()  # what a failed load left in a cycle
    network: Any
    found: Mapping[str, Any]
    with blamed_on_files(folder):
        config = read_config(folder)
        if getattr(config.get_text_config(), "attn_logit_softcapping", None):
            # transformers' fused attention leaves the cap out, and not every version of it knows.
            where = {**where, "attn_implementation": "eager"}
        network, found = auto_class(folder, config).from_pretrained(
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
def reporting(folder: Path, progress: Progress) -> Iterator[int]:
    """Reports the bytes of the weights while transformers loads them: it walks over them in a progress bar.

    Gives how many there are in all.
    """
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
        yield total
    finally:
        set_tqdm_hook(previous)
    progress(total, total)
