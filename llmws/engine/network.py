"""A transformers model as the tiers see it, and what may go wrong in one.

Owns the translation of torch's and transformers' failures. Knows no tier. Invariant: whatever a model or a tokenizer
raises comes out as an error with a code, or as `DeviceLostError`.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import inspect
import logging
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from tokenizers import Tokenizer

from llmws.engine.runner import DeviceLostError
from llmws.engine_api import NO_IMAGES, GenerationRequest, ModelInfo
from llmws.errors import BadRequestError, LlmwsError, ModelInvalidError, ModelOutOfMemoryError, PromptError
from llmws.protocol import ErrorCode

log = logging.getLogger(__name__)

_MAX_TEXT_CHARS = 2**18
"""Longest text of one decoding, of some 130 tokens at most; the longest tokens in use have a thousand characters."""


class Network(Protocol):
    """What is used of a transformers causal language model."""

    config: Any
    generation_config: Any
    device: torch.device
    dtype: torch.dtype

    def __call__(self, **inputs: object) -> Mapping[str, Any]:
        """One forward; what comes out has at least `logits`."""

    def prepare_inputs_for_generation(self, input_ids: torch.Tensor, **inputs: object) -> dict[str, Any]:
        """The inputs of the next forward, as this model wants them."""

    def set_attn_implementation(self, attn_implementation: str) -> None:
        """Has all layers use the attention that is registered under a name."""

    def _prepare_position_ids_for_generation(self, ids: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The positions of a prompt, as `generate()` asks for them."""

    def tie_weights(self) -> None:
        """Has the modules that share a weight share it again."""

    def get_input_embeddings(self) -> torch.nn.Embedding:
        """The module that turns ids into vectors."""

    def modules(self) -> Iterator[torch.nn.Module]:
        """Of a torch module: itself, and all that it is made of."""

    def parameters(self) -> Iterator[torch.Tensor]:
        """Of a torch module."""

    def buffers(self) -> Iterator[torch.Tensor]:
        """Of a torch module."""


def vocabulary(model: Network) -> int:
    """How many tokens the model has."""
    return int(model.config.get_text_config().vocab_size)


@contextlib.contextmanager
def device_errors(purpose: str) -> Iterator[None]:
    """Turns what torch raises when memory is full into an error with a code, a dead device into `DeviceLostError`."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise ModelOutOfMemoryError(f"there is not enough memory for {purpose}") from None
    except torch.AcceleratorError as error:
        raise DeviceLostError(str(error)) from error
    except (MemoryError, RuntimeError) as error:
        # On CPU torch has no type of its own for it.
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise ModelOutOfMemoryError(f"there is not enough memory for {purpose}") from None
        raise


@contextlib.contextmanager
def own_errors() -> Iterator[None]:
    """Turns whatever torch and a model raise into errors with a code, or `DeviceLostError`."""
    try:
        with device_errors("this request"):
            yield
    except (LlmwsError, DeviceLostError):
        raise
    except Exception:
        log.exception("a request failed in the model")
        raise ModelInvalidError("the model failed on this request") from None


@functools.cache
def forward_parameters(model_class: Hashable) -> frozenset[str]:
    """What the forward of a class of models takes."""
    return frozenset(inspect.signature(model_class.forward).parameters)  # type: ignore[attr-defined]


def decoded(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of ids; see `text.Decode`.

    Raises:
        ModelInvalidError: the tokenizer failed, or the text is beyond any bound.
    """
    try:
        text = tokenizer.decode(list(ids), skip_special_tokens=True)
    except BaseException as error:  # noqa: BLE001 - a panic of the tokenizers library is not even an Exception
        log.error("decoding failed: %s", type(error).__name__)
        raise ModelInvalidError("the model's tokenizer failed on this answer") from None
    if len(text) > _MAX_TEXT_CHARS:
        raise ModelInvalidError("a token of the model is longer than text can be")
    return text


def check_request(request: GenerationRequest, info: ModelInfo, vocabulary: int) -> None:
    """Refuses what no tier can serve.

    Raises:
        BadRequestError: an id is not one of the model's, or there is an image left that no processor has taken.
        PromptError: prompt and answer are longer than the model's context.
    """
    if not request.prompt_ids:
        raise BadRequestError("the prompt has no tokens")
    if request.images:
        raise BadRequestError(NO_IMAGES)
    # On CUDA an id beyond the embedding is an assertion in a kernel, which ends every stream of the process.
    if (largest := max(request.prompt_ids + request.emitted_ids)) >= vocabulary:
        raise BadRequestError(f"there is no token {largest}; the model has {vocabulary}")
    total = len(request.prompt_ids) + request.max_new_tokens
    if total > info.max_context:
        message = f"prompt and answer take up to {total} tokens; the model takes {info.max_context}"
        raise PromptError(ErrorCode.CONTEXT_TOO_LONG, message)


def give_back() -> None:
    """Has the device get back what nobody uses any more; for other models, and other processes."""
    gc.collect()  # modules, their hooks and caches refer to one another
    if torch.cuda.is_available():
        try:
            torch.cuda.empty_cache()
        except RuntimeError as error:
            # What ends must end; a device that can do nothing more says so to whoever uses it next.
            log.warning("the device's memory stays with this process: %s", error)
