"""From a model's folder to a network in memory.

Owns what is read and trusted. Knows neither tiers nor requests. Invariant: nothing but safetensors and JSON is read, no
code from the folder is run, and nothing is fetched.
"""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils.logging import set_tqdm_hook

from llmws import model_config
from llmws.engine.network import Network, device_errors
from llmws.engine.runner import DeviceLostError, Progress, StoppedError
from llmws.engine.vision import has_processor
from llmws.errors import LlmwsError, ModelInvalidError, one_line
from llmws.model_files import check_files
from llmws.weight_files import tensor_bytes

log = logging.getLogger(__name__)

_REPORT_BYTES = 2**24
"""Weights between two reports of progress, at least."""

_MAPPINGS = (transformers.MODEL_FOR_CAUSAL_LM_MAPPING, transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING)


def check_folder(folder: Path) -> None:
    """Says what is wrong with a model before anything large is read, and before others make room for it.

    Raises:
        ModelInvalidError: and why.
    """
    check_files(folder)
    check_type(folder)
    tensor_bytes(folder)


def check_type(folder: Path) -> None:
    """Says what is wrong with a model's configuration, before transformers sees it.

    Raises:
        ModelInvalidError: and why.
    """
    model_type = model_config.check_config(folder)
    if model_type not in transformers.CONFIG_MAPPING:
        raise ModelInvalidError(f"transformers {transformers.__version__} does not know the model type {model_type!r}")
    config_class = transformers.CONFIG_MAPPING[model_type]
    if not any(config_class in each for each in _MAPPINGS):
        raise ModelInvalidError(f"models of type {model_type!r} are not causal language models")


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
        line = one_line(str(error).replace(str(folder), folder.name))
        raise ModelInvalidError(f"transformers cannot read it: {type(error).__name__}: {line}") from None


def read_config(folder: Path) -> Any:  # noqa: ANN401 - transformers' configurations, each its own class
    """The configuration of a folder that `check_type` passed.

    Raises:
        ModelInvalidError: of what the file says, its class makes more layers than the file may.
    """
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if isinstance(layers, int) and layers > model_config.MAX_PARTS:
        raise ModelInvalidError(f"it has more than {model_config.MAX_PARTS} layers")
    return config


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
